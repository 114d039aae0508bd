"""How a run ended, whose call it is, and who else listens: each run is one trace, and a trace says what was."""

import asyncio
import concurrent.futures
import itertools
import uuid
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, interrupt

from stateset_agents.policy.chat_model import connect
from stateset_agents.trace import Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.store import TraceStore
from tests.patterns import called

HI: Any = {"messages": [HumanMessage("hi")]}


def kept(store: TraceStore) -> list[Trace]:
    store.flush()
    return list(store.traces())


def say(text: str) -> Any:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(text)]}

    return node


def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(str(interrupt("Shall I?")))]}


def chain(*nodes: tuple[str, Any], routed: bool = False, jumps: bool = False) -> Any:
    graph = StateGraph(MessagesState)
    for name, node in nodes:
        graph.add_node(name, node)
    names = [START, *(name for name, _ in nodes)]
    for before, after in itertools.pairwise(names):
        graph.add_edge(before, after)
    if routed:
        graph.add_conditional_edges(names[-1], lambda state: END, [END, names[1]])
    elif not jumps:
        graph.add_edge(names[-1], END)
    return graph.compile(checkpointer=InMemorySaver())


async def jump(state: MessagesState) -> Command[str]:
    return Command(goto=END, update={"messages": [AIMessage("b")]})


@pytest.mark.parametrize(
    ("graph", "leaves_after", "status"),
    [
        (chain(("a", say("a")), ("b", say("b"))), "a", "interrupted"),
        (chain(("a", say("a")), ("b", say("b"))), "b", "completed"),
        (chain(("a", say("a")), ("b", say("b")), routed=True), "b", "completed"),
        (chain(("a", say("a")), ("b", jump), jumps=True), "b", "completed"),
        (chain(("a", say("a")), ("b", ask)), "__interrupt__", "waiting"),
        (chain(("a", say("a")), ("b", ask)), "a", "interrupted"),
    ],
)
async def test_an_abandoned_stream_is_what_it_was(
    graph: Any, leaves_after: str, status: str, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        stream = record(graph, store).astream(HI, {"configurable": {"thread_id": uuid.uuid4().hex}})
        async for update in stream:
            if leaves_after in update:
                break
        await stream.aclose()
        (trace,) = kept(store)
    assert (trace.status, trace.error) == (status, None)


async def test_a_run_that_is_cancelled_did_not_fail(tmp_path: Path) -> None:
    async def slow(state: MessagesState) -> MessagesState:
        await asyncio.sleep(30)
        return state

    with TraceStore(tmp_path / "traces.db") as store:
        graph = record(chain(("slow", slow)), store)
        run = asyncio.create_task(graph.ainvoke(HI, {"configurable": {"thread_id": "1"}}))
        await asyncio.sleep(0.2)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        (trace,) = kept(store)
    assert (trace.status, trace.error) == ("interrupted", None)


async def test_a_graph_inside_that_waits_does_not_make_its_parent_wait(tmp_path: Path) -> None:
    inside = chain(("ask", ask))

    async def calls(state: MessagesState) -> dict[str, Any]:
        await inside.ainvoke(HI, {"configurable": {"thread_id": "inside"}})
        return {"messages": [AIMessage("done")]}

    with TraceStore(tmp_path / "traces.db") as store:
        graph = record(chain(("calls", calls)), store)
        await graph.ainvoke(HI, {"configurable": {"thread_id": "1"}})
        (trace,) = kept(store)
    assert trace.status == "completed"


async def test_a_part_of_the_graph_that_waits_makes_it_wait(tmp_path: Path) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("part", chain(("ask", ask)).copy({"checkpointer": None}))
    graph.add_edge(START, "part")
    config: Any = {"configurable": {"thread_id": "1"}}
    with TraceStore(tmp_path / "traces.db") as store:
        recorded = record(graph.compile(checkpointer=InMemorySaver()), store)
        await recorded.ainvoke(HI, config)
        await recorded.ainvoke(Command(resume="yes"), config)
        waiting, resumed = kept(store)
    assert (waiting.status, resumed.status) == ("waiting", "completed")


async def test_runs_of_one_id_are_two_traces(tmp_path: Path) -> None:
    run = uuid.uuid4()
    with TraceStore(tmp_path / "traces.db") as store:
        graph = record(chain(("a", say("a"))), store)
        for thread in ("1", "2"):
            await graph.ainvoke(HI, {"run_id": run, "configurable": {"thread_id": thread}})
        traces = kept(store)
    assert {trace.thread for trace in traces} == {"1", "2"}
    assert traces[0].id == run.hex


def of_policy(url: str) -> Any:
    policy = connect(url, "policy").model_copy(update={"max_tokens": 2})

    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await policy.ainvoke(state["messages"])]}

    return node


async def test_every_recorder_gets_the_tokens(engine: str, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "a.db") as first, TraceStore(tmp_path / "b.db") as other:
        graph = record(record(chain(("a", of_policy(engine))), first), other)
        await graph.ainvoke(HI, {"configurable": {"thread_id": "1"}})
        traces = [*kept(first), *kept(other)]
    assert [trace.exactness for trace in traces] == ["exact", "exact"]


@pytest.mark.parametrize("redact", [False, True])
async def test_a_recorded_graph_inside_a_recorded_graph_is_recorded_once(
    redact: bool, engine: str, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        inside = record(chain(("in", of_policy(engine))), store, redact=redact)

        async def calls(state: MessagesState) -> dict[str, Any]:
            end = await inside.ainvoke(state, {"configurable": {"thread_id": "inside"}})
            return {"messages": end["messages"]}

        graph = record(chain(("calls", calls)), store, redact=redact)
        await graph.ainvoke(HI, {"configurable": {"thread_id": "1"}})
        (trace,) = kept(store)
        assert [call.node for call in trace.model_calls] == ["in"]
        await inside.ainvoke(HI, {"configurable": {"thread_id": "2"}})
        assert len(kept(store)) == 2


async def test_calls_that_no_callback_told_of_are_hinted_at_once(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = connect(engine, "policy").model_copy(update={"max_tokens": 2})

    async def pooled(state: MessagesState) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            message = await loop.run_in_executor(
                pool, lambda: policy.invoke("hi", {"callbacks": []})
            )
        await asyncio.sleep(1.1)
        return {"messages": [message]}

    with TraceStore(tmp_path / "traces.db") as store:
        graph = record(chain(("pooled", pooled)), store)
        for thread in ("1", "2"):
            await graph.ainvoke(HI, {"configurable": {"thread_id": thread}})
        assert [trace.model_calls for trace in kept(store)] == [(), ()]
    assert caplog.text.count("copy_context") == 1


async def test_each_try_of_a_tool_is_there_with_its_own_outcome(tmp_path: Path) -> None:
    tries: list[str] = []

    @tool
    def flaky(order: str) -> str:
        """Fails once."""
        tries.append(order)
        if len(tries) == 1:
            raise ConnectionError("gone")
        return "there"

    async def asks(state: MessagesState) -> dict[str, Any]:
        return {"messages": [called("flaky", order="W1")]}

    graph = StateGraph(MessagesState)
    graph.add_node("asks", asks)
    again = RetryPolicy(max_attempts=2, initial_interval=0.01, retry_on=ConnectionError)
    graph.add_node("tools", ToolNode([flaky], handle_tool_errors=False), retry_policy=again)
    graph.add_edge(START, "asks")
    graph.add_edge("asks", "tools")
    with TraceStore(tmp_path / "traces.db") as store:
        await record(graph.compile(), store).ainvoke(HI)
        (trace,) = kept(store)
    assert [(call.status, call.result, call.content) for call in trace.tool_calls] == [
        ("failed", "ConnectionError: gone", None),
        ("done", "there", None),
    ]
