"""LangSmith both ways, with its real client against a double on loopback; once against the real one where a key is set."""

import datetime
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langsmith import Client

from stateset_agents.errors import BadInput
from stateset_agents.reward import Score
from stateset_agents.trace import Feedback, ModelCall, ToolCall, Trace
from stateset_agents.traces.conversion import openai_message, openai_messages
from stateset_agents.traces.export import pyarrow
from stateset_agents.traces.langsmith import fetched, read, store_all, traces_of, upload
from stateset_agents.traces.store import TraceStore
from tests.command_line import run
from tests.langsmith_double import Double, langsmith

AGES = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def double() -> Iterator[Double]:
    with langsmith() as running:
        yield running


@pytest.fixture
def client(double: Double) -> Iterator[Client]:
    client = Client(api_url=double.url, api_key="lsv2_test", auto_batch_tracing=True)
    yield client
    client.close()


def trace() -> Trace:
    question = {"role": "user", "content": "Where is W20417?"}
    call = {
        "role": "assistant", "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "track", "arguments": "{}"}}],
    }  # fmt: skip
    result = {"role": "tool", "tool_call_id": "c1", "content": '{"arrives": "3 May"}'}
    answer = {"role": "assistant", "content": "On 3 May."}
    offered = {
        "type": "function",
        "function": {"name": "track", "description": "", "parameters": {}},
    }
    return Trace(
        id=uuid.uuid4().hex, thread="t1", graph="service", started=1.7e9, seconds=2.0,
        messages=(question, call, result, answer),
        model_calls=(
            ModelCall(response_id="r1", node="policy", namespace="policy:1", version="v3", messages=(question,),
                      tools=(offered,), answer=call, turn=1, temperature=0.5, seconds=0.5),
            ModelCall(response_id="r2", node="policy", namespace="policy:2", version="v3",
                      messages=(question, call, result), tools=(offered,), answer=answer, turn=1, temperature=0.5, seconds=0.5),
        ),
        tool_calls=(ToolCall(id="c1", name="track", arguments={"order": "W20417"}, status="done", result={"arrives": "3 May"}),),
        feedback=(Feedback(key="csat", value=4.0, at=1.0),),
    )  # fmt: skip


async def test_what_is_exported_comes_back_with_its_calls_tools_and_feedback(
    client: Client, double: Double, tmp_path: Path
) -> None:
    mine = trace()
    with TraceStore(tmp_path / "one.db") as store:
        store.append(mine, phase="production", step=2, score=Score(value=0.75)).result()
        assert upload(store, client, "shop") == 1
    assert sorted(run["run_type"] for run in double.runs.values()) == [
        "chain",
        "llm",
        "llm",
        "tool",
    ]
    root = double.runs[str(uuid.UUID(mine.id))]
    assert root["extra"]["metadata"]["policy_versions"] == ["v3"]
    assert {f["key"]: f["score"] for f in double.feedback} == {"reward": 0.75, "csat": 4.0}
    runs = [run async for run in fetched(client, "shop", since=AGES)]
    assert len(runs) == 4  # two pages
    with TraceStore(tmp_path / "two.db") as store:
        assert store_all(store, traces_of(runs)) == (1, 0)
        assert store_all(store, traces_of(runs)) == (0, 1)
        back = store.get(mine.id)
    assert (back.thread, back.graph, back.status, back.exactness) == (
        "t1",
        "service",
        "completed",
        "text",
    )
    assert back.messages == mine.messages
    assert back.model_calls == mine.model_calls
    assert [(c.name, c.arguments, c.result, c.status) for c in back.tool_calls] == [
        ("track", {"order": "W20417"}, {"arrives": "3 May"}, "done")
    ]
    assert {item.key: item.value for item in back.feedback} == {"reward": 0.75, "csat": 4.0}


async def test_a_project_that_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        async for _ in fetched(client, "nowhere", since=AGES):
            pass


def as_langchain_writes() -> list[dict[str, Any]]:
    """A run of LangChain's own tracer: constructors, batches, generations."""
    root, llm = str(uuid.uuid4()), str(uuid.uuid4())
    sent = [SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "x"}]),
            ToolMessage("7", tool_call_id="x")]  # fmt: skip
    start, end = "2026-11-01T10:00:00", "2026-11-01T10:00:02"
    return [
        {"id": llm, "trace_id": root, "run_type": "llm", "name": "ChatOpenAI", "start_time": start, "end_time": end,
         "dotted_order": f"a.{llm}", "inputs": {"messages": [[dumpd(m) for m in sent]]},
         "outputs": {"generations": [[{"text": "Hello.", "message": dumpd(AIMessage("Hello."))}]]},
         "extra": {"invocation_params": {"model": "gpt", "tools": []},
                   "metadata": {"langgraph_node": "agent", "thread_id": "t4", "langgraph_checkpoint_ns": "agent:1"}}},
        {"id": root, "trace_id": root, "run_type": "chain", "name": "graph", "start_time": start, "end_time": None,
         "dotted_order": "a", "inputs": {}, "outputs": {}, "extra": {"metadata": {"thread_id": "t4"}},
         "feedback_stats": {"thumbs": {"n": 2, "avg": 0.5}}},
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_exports_of_langsmith_are_read(ending: str, tmp_path: Path) -> None:
    runs, file = as_langchain_writes(), tmp_path / f"runs.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(run) + "\n" for run in runs))
    else:  # nested columns are text there
        flat = [
            {k: json.dumps(v) if isinstance(v, dict) else v for k, v in run.items()} for run in runs
        ]
        arrow, parquet = pyarrow()
        names = {name for run in flat for name in run}
        rows = [{name: run.get(name) for name in sorted(names)} for run in flat]
        parquet.write_table(arrow.Table.from_pylist(rows), file)
    (imported,) = traces_of(read(file, []))
    assert (imported.status, imported.thread, imported.exactness) == ("interrupted", "t4", "text")
    (call,) = imported.model_calls
    assert (call.node, call.version, call.seconds) == ("agent", "gpt", 2.0)
    assert [m["role"] for m in call.messages] == ["system", "user", "assistant", "tool"]
    assert json.loads(call.messages[2]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert call.answer is not None
    assert call.answer["content"] == "Hello."
    assert [(item.key, item.value) for item in imported.feedback] == [("thumbs", 0.5)]


def test_a_line_ends_where_it_ends_and_not_inside_a_text(tmp_path: Path) -> None:
    runs, file = as_langchain_writes(), tmp_path / "runs.jsonl"
    runs[1]["outputs"] = {"messages": [{"role": "assistant", "content": "one\u2028two\x85three"}]}
    file.write_text("".join(json.dumps(run, ensure_ascii=False) + "\n" for run in runs))
    (imported,) = traces_of(read(file, []))
    assert imported.messages[0]["content"] == "one\u2028two\x85three"


def test_a_run_that_was_under_way_is_replaced_by_its_whole(tmp_path: Path) -> None:
    llm, root = as_langchain_writes()
    with TraceStore(tmp_path / "traces.db") as store:
        assert store_all(store, traces_of([llm])) == (1, 0)  # its root is not there yet
        (partly,) = store.traces()
        root["end_time"] = "2026-11-01T10:00:03"
        assert store_all(store, traces_of([llm, root])) == (1, 0)
        assert store_all(store, traces_of([llm, root])) == (0, 1)
        (whole,) = store.traces()
    assert partly.id == whole.id
    assert (partly.status, whole.status, len(whole.model_calls)) == ("interrupted", "completed", 1)


def test_what_is_no_run_is_named_and_the_rest_is_imported(tmp_path: Path) -> None:
    llm, root = as_langchain_writes()
    root["end_time"] = "2026-11-01T10:00:03"
    trace_id = root["trace_id"]
    search = {
        "id": str(uuid.uuid4()), "trace_id": trace_id, "run_type": "retriever", "name": "search",
        "inputs": {"query": "boots"}, "outputs": {"documents": [{"page_content": "red boots"}]},
    }  # fmt: skip
    broken = {"id": str(uuid.uuid4()), "trace_id": trace_id, "run_type": "llm", "inputs": 7}
    alone = {
        "id": "not-a-uuid",
        "run_type": "chain",
        "start_time": "last Tuesday",
        "error": {"code": 5},
    }
    lines = [*map(json.dumps, (llm, root, search, broken, alone)), "nothing", "[" * 100_000, "{}"]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(lines))
    shown = run("traces", "langsmith", "import", str(tmp_path / "traces.db"), "--file", str(file))
    assert "2 traces" in shown
    assert "3 lines were left out" in shown
    assert "2 runs of 2 traces could not be read" in shown
    with TraceStore(tmp_path / "traces.db") as store:
        whole = next(trace for trace in store.traces() if trace.model_calls)
    (tool,) = whole.tool_calls
    assert (tool.name, tool.arguments, tool.status) == ("search", {"query": "boots"}, "done")
    assert "red boots" in str(tool.result)
    file.write_text("nothing\n")
    assert "line 1" in run(
        "traces", "langsmith", "import", str(tmp_path / "traces.db"), "--file", str(file), status=2
    )


def test_what_openais_form_has_no_place_for_is_kept_beside_it() -> None:
    message = AIMessage(
        "Hm.",
        additional_kwargs={"reasoning_content": "thinking", "audio": {"transcript": "hm"}, "x": 1},
        invalid_tool_calls=[{"name": "f", "args": "{", "id": "1", "error": "no JSON"}],
    )
    tool = ToolMessage("[]", tool_call_id="1", artifact={"rows": [1]}, status="error")
    for source in (message, dumpd(message), {"type": "ai", "data": message.model_dump()}):
        kept = openai_message(source)
        assert (kept["reasoning_content"], kept["audio"]) == ("thinking", {"transcript": "hm"})
        assert kept["extra"]["invalid_tool_calls"][0]["args"] == "{"
        assert kept["extra"]["x"] == 1
    (kept,) = openai_messages([tool])
    assert kept["extra"] == {"artifact": {"rows": [1]}, "status": "error"}
    assert "extra" not in openai_messages([AIMessage("plain")])[0]


@pytest.mark.skipif(not os.environ.get("LANGSMITH_API_KEY"), reason="no LANGSMITH_API_KEY")
def test_against_langsmith_itself(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "one.db") as store:
        store.append(trace()).result()
        assert upload(store, Client(), "stateset-agents-test") == 1
