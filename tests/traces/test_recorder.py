"""Graphs as other people write them are recorded in one line: every call, node and tool, and the same results."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseLLM
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.outputs import (
    ChatResult,
    Generation,
    LLMResult,
)
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import RetryPolicy

from stateset_agents.errors import BadInput
from stateset_agents.policy.chat_model import connect
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.retention import forget
from stateset_agents.traces.store import TraceStore
from tests.patterns import (
    PATTERNS,
    Pattern,
    Scripted,
    Topics,
    _human,
    called,
    react,
    reflection,
    stock,
)


def plain(state: dict[str, Any]) -> Any:
    """A final state without the ids that differ from run to run."""
    return {
        key: [(m.type, m.text) for m in value] if key == "messages" else value
        for key, value in state.items()
        if key != "__interrupt__"
    }


async def run(graph: Any, inputs: list[Any], thread: str) -> list[Any]:
    config: Any = {"configurable": {"thread_id": thread}, "recursion_limit": 30}
    return [plain(await graph.ainvoke(given, config)) for given in inputs]


def kept(store: TraceStore) -> list[Trace]:
    store.flush()
    return list(store.traces())


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_every_call_node_and_tool_is_there_and_nothing_else_changes(
    pattern: Callable[[], Pattern], tmp_path: Path
) -> None:
    bare, listened = pattern(), pattern()
    with TraceStore(tmp_path / "traces.db") as store:
        recorded = record(listened.graph, store)
        assert type(recorded) is type(listened.graph)
        assert await run(recorded, listened.inputs, "t") == await run(bare.graph, bare.inputs, "t")
        traces = kept(store)
    calls = [call for trace in traces for call in trace.model_calls]
    assert Counter(call.node for call in calls) == listened.nodes
    assert all(call.answer and call.messages and not call.error for call in calls)
    assert len({call.namespace for call in calls}) == len({(c.namespace, c.node) for c in calls})
    assert tuple(c.name for trace in traces for c in trace.tool_calls) == listened.tools
    statuses = [trace.status for trace in traces]
    assert statuses == ["waiting", "completed"] if len(listened.inputs) == 2 else ["completed"]
    assert {trace.thread for trace in traces} == {"t"}
    assert {trace.exactness for trace in traces} == {"text"}


@pytest.mark.parametrize("pattern", [react, reflection])
def test_sync_runs_and_streams_are_recorded_alike(
    pattern: Callable[[], Pattern], tmp_path: Path
) -> None:
    made = pattern()
    with TraceStore(tmp_path / "traces.db") as store:
        recorded = record(made.graph, store)
        recorded.invoke(made.inputs[0])
        streamed = list(recorded.stream(made.inputs[0], stream_mode="updates"))
        bare = list(made.graph.stream(made.inputs[0], stream_mode="updates"))
        assert [list(part) for part in streamed] == [list(part) for part in bare]
        words = [c.text for c, _ in recorded.stream(made.inputs[0], stream_mode="messages")]
        assert len(words) > 2
        traces = kept(store)
    assert [Counter(c.node for c in trace.model_calls) for trace in traces] == [made.nodes] * 3


async def test_what_is_streamed_is_kept_whole(tmp_path: Path) -> None:
    made = react()
    with TraceStore(tmp_path / "traces.db") as store:
        async for _ in record(made.graph, store).astream(made.inputs[0], stream_mode="messages"):
            pass
        (trace,) = kept(store)
    first, last = trace.model_calls
    assert first.answer is not None
    assert first.answer["tool_calls"][0]["function"]["name"] == "stock"
    assert last.answer is not None
    assert last.answer["content"] == "There are 7."


async def test_create_agent_is_recorded(tmp_path: Path) -> None:
    def answer(messages: Sequence[BaseMessage]) -> AIMessage | str:
        return "7." if isinstance(messages[-1], ToolMessage) else called("stock", sku="P1")

    agent = create_agent(Scripted(answer=answer), [stock])
    with TraceStore(tmp_path / "traces.db") as store:
        await record(agent, store).ainvoke(_human("How many?"))
        (trace,) = kept(store)
    assert Counter(call.node for call in trace.model_calls) == {"model": 2}
    assert [tool["function"]["name"] for tool in trace.model_calls[0].tools] == ["stock"]
    assert [(c.name, c.arguments, c.result, c.status) for c in trace.tool_calls] == [
        ("stock", {"sku": "P1"}, "7 of P1", "done")
    ]
    assert [m["role"] for m in trace.messages] == ["user", "assistant", "tool", "assistant"]


async def test_calls_of_attempts_that_failed_are_kept_apart(tmp_path: Path) -> None:
    tries = 0

    async def moody(state: MessagesState) -> dict[str, Any]:
        nonlocal tries
        answer = await model.ainvoke(state["messages"])
        tries += 1
        if tries < 3:
            raise ConnectionError("not yet")
        return {"messages": [answer]}

    model = Scripted(answer=lambda messages: f"try {tries}")
    graph = StateGraph(MessagesState)
    graph.add_node(
        "moody",
        moody,
        retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.01, jitter=False),
    )
    graph.add_edge(START, "moody")
    with TraceStore(tmp_path / "traces.db") as store:
        await record(graph.compile(), store).ainvoke(_human("go"))
        (trace,) = kept(store)
    assert trace.status == "completed"
    assert [(c.attempt, c.discarded) for c in trace.model_calls] == [
        (1, True),
        (2, True),
        (3, False),
    ]
    assert [call.answer["content"] for call in trace.calls if call.answer] == ["try 2"]


async def test_a_model_and_a_tool_that_fail_are_data(tmp_path: Path) -> None:
    @tool
    def broken(sku: str) -> str:
        """Never works."""
        raise RuntimeError("no such shelf")

    def answer(messages: Sequence[BaseMessage]) -> AIMessage | str:
        if messages[-1].type == "tool":
            raise ValueError("confused")
        return called("broken", sku="P1")

    model = Scripted(answer=answer)
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([broken], handle_tool_errors=True))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    with TraceStore(tmp_path / "traces.db") as store:
        with pytest.raises(ValueError, match="confused"):
            await record(graph.compile(), store).ainvoke(_human("go"))
        (trace,) = kept(store)
    assert (trace.status, trace.error) == ("failed", "ValueError: confused")
    assert [call.error for call in trace.model_calls] == [None, "ValueError: confused"]
    (used,) = trace.tool_calls
    assert (used.status, "no such shelf" in str(used.result)) == ("failed", True)


async def test_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    made = react()
    with TraceStore(tmp_path / "traces.db") as store:
        recorded = record(made.graph, store)
        await asyncio.gather(*(recorded.ainvoke(_human(f"q{n}")) for n in range(40)))
        traces = kept(store)
    assert len(traces) == 40
    assert {trace.messages[0]["content"] for trace in traces} == {f"q{n}" for n in range(40)}
    assert all(len(trace.model_calls) == 2 and len(trace.tool_calls) == 1 for trace in traces)


async def test_a_model_called_outside_every_graph_is_a_run_of_its_own(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        model = record(Scripted(answer=lambda messages: "hello"), store)
        await model.ainvoke("hi")
        (trace,) = kept(store)
    assert [call.messages for call in trace.model_calls] == [({"role": "user", "content": "hi"},)]
    assert trace.messages[-1]["content"] == "hello"


async def test_a_recorded_policy_is_exact_invoked_streamed_and_with_tools(
    engine: str, tmp_path: Path
) -> None:
    policy = connect(engine, "policy").sampling(Sampling(version="policy", max_tokens=24))
    streaming = policy.model_copy(update={"disable_streaming": False})

    async def part(state: MessagesState) -> dict[str, Any]:
        await policy.bind_tools([stock]).ainvoke(state["messages"])
        return {"messages": [await streaming.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("one", part)
    graph.add_edge(START, "one")
    with TraceStore(tmp_path / "traces.db") as store:
        recorded = record(graph.compile(), store)
        await recorded.ainvoke(_human("Where is my order?"))
        async for _ in recorded.astream(_human("Where is my order?"), stream_mode="messages"):
            pass
        config: Any = recorded.config
        await asyncio.to_thread(lambda: policy.invoke("hi", config))
        await asyncio.to_thread(lambda: list(streaming.stream("hi", config)))
        traces = kept(store)
    assert {trace.exactness for trace in traces} == {"exact"}
    assert len([call for trace in traces for call in trace.model_calls]) == 6
    for trace in traces:
        assert "logprob" not in str(trace.messages)
        assert "token_ids" not in str(trace.messages)
        assert all(call.version == "policy" for call in trace.model_calls)
    assert traces[2].model_calls[0].prompt_ids == traces[3].model_calls[0].prompt_ids


async def test_what_an_app_changes_afterwards_is_not_in_the_record(tmp_path: Path) -> None:
    model = Scripted(answer=lambda messages: "hello")

    async def only(state: MessagesState) -> dict[str, Any]:
        sent = list(state["messages"])
        answer = await model.ainvoke(sent)
        sent.append(answer)
        return {"messages": [answer]}

    graph = StateGraph(MessagesState)
    graph.add_node("only", only)
    graph.add_edge(START, "only")
    given = _human("hi")
    with TraceStore(tmp_path / "traces.db") as store:
        await record(graph.compile(), store).ainvoke(given)
        given["messages"].append(HumanMessage("more"))
        (trace,) = kept(store)
    assert [m["content"] for m in trace.model_calls[0].messages] == ["hi"]
    assert [m["content"] for m in trace.input["messages"]] == ["hi"]


class Completes(BaseLLM):
    """A model that completes texts, as older ones do."""

    @property
    def _llm_type(self) -> str:
        return "completes"

    def _generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        return LLMResult(generations=[[Generation(text=f"{prompt}!")] for prompt in prompts])


class Finds(BaseRetriever):
    """A retriever with one document."""

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [Document(f"on {query}", metadata={"page": 3})]


async def test_models_that_complete_and_retrievers_are_recorded_too(tmp_path: Path) -> None:
    async def only(state: Topics) -> Topics:
        result = await Finds().ainvoke(state["topic"])
        return {"best": await Completes().ainvoke(result[0].page_content)}

    graph = StateGraph(Topics)
    graph.add_node("only", only)
    graph.add_edge(START, "only")
    with TraceStore(tmp_path / "traces.db") as store:
        end = await record(graph.compile(), store).ainvoke({"topic": "lamps"})
        (trace,) = kept(store)
    assert end["best"] == "on lamps!"
    (call,) = trace.model_calls
    assert (call.node, call.messages[0]["content"]) == ("only", "on lamps")
    assert call.answer is not None
    assert call.answer["content"] == "on lamps!"
    (used,) = trace.tool_calls
    assert (used.name, used.arguments) == ("Finds", {"query": "lamps"})
    assert used.result == {"documents": [{"content": "on lamps", "metadata": {"page": 3}}]}


async def test_a_call_that_the_run_did_not_wait_for_is_kept_as_unanswered(tmp_path: Path) -> None:
    never, tasks = asyncio.Event(), []

    class Waits(Scripted):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            await never.wait()
            raise AssertionError

    async def only(state: MessagesState) -> dict[str, Any]:
        tasks.append(asyncio.create_task(Waits(answer=lambda m: "").ainvoke(state["messages"])))
        await asyncio.sleep(0.05)
        return {"messages": []}

    graph = StateGraph(MessagesState)
    graph.add_node("only", only)
    graph.add_edge(START, "only")
    with TraceStore(tmp_path / "traces.db") as store:
        await record(graph.compile(), store).ainvoke(_human("hi"))
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (trace,) = kept(store)
    assert trace.status == "completed"
    assert ["before the model answered" in (call.error or "") for call in trace.model_calls] == [
        True
    ]
    assert trace.lost == 0


async def test_a_failed_run_still_says_whose_it_was(tmp_path: Path) -> None:
    class Service(MessagesState, total=False):
        session: dict[str, Any]

    def sign_in(state: Service) -> dict[str, Any]:
        return {"session": {"customer": "C9"}}

    def breaks(state: Service) -> dict[str, Any]:
        raise ValueError("no")

    graph = StateGraph(Service)
    graph.add_node("sign_in", sign_in)
    graph.add_node("breaks", breaks)
    graph.add_edge(START, "sign_in")
    graph.add_edge("sign_in", "breaks")
    with TraceStore(tmp_path / "traces.db") as store:
        with pytest.raises(ValueError, match="no"):
            await record(graph.compile(), store).ainvoke(_human("hi"))
        (trace,) = kept(store)
        assert (trace.status, trace.customer) == ("failed", "C9")
        assert forget(store, "C9") == (1, [])


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    with (
        TraceStore(tmp_path / "traces.db") as store,
        pytest.raises(BadInput, match="compiled LangGraph"),
    ):
        record(print, store)


async def test_a_static_breakpoint_waits_too(tmp_path: Path) -> None:
    made = reflection()
    graph = made.graph.copy(
        {"checkpointer": InMemorySaver(), "interrupt_before_nodes": ["criticise"]}
    )
    with TraceStore(tmp_path / "traces.db") as store:
        await record(graph, store).ainvoke(
            made.inputs[0], {"configurable": {"thread_id": "t"}, "metadata": {"customer": "C7"}}
        )
        (trace,) = kept(store)
    assert (trace.status, trace.customer) == ("waiting", "C7")
