"""What other people's graphs do is replayed to the byte: injected arguments, odd JSON, handled errors, resumes by id."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime, tools_condition
from langgraph.types import Command, interrupt

from stateset_agents.trace import Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.replay import replay
from stateset_agents.traces.store import TraceStore
from tests.patterns import Scripted, called

HI: Any = {"messages": [HumanMessage("hi")]}


async def recorded(graph: Any, inputs: list[Any], folder: Path) -> list[Trace]:
    with TraceStore(folder / "traces.db") as store:
        config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 40}
        for given in inputs:
            state = await graph.aget_state(config)
            send = given(state.interrupts) if callable(given) else given
            await record(graph, store, redact=False).ainvoke(send, config)
        store.flush()
        return list(store.traces())


async def is_the_same_again(
    make: Callable[[], Any], inputs: list[Any], folder: Path
) -> list[Trace]:
    traces = await recorded(make(), inputs, folder)
    again, differs = await replay(make(), traces)
    assert differs is None
    assert without_drawn_ids(again) == without_drawn_ids(list(traces[-1].messages))
    return traces


def without_drawn_ids(messages: list[Any]) -> str:
    """As JSON, with the ids that a graph draws at random numbered in their order."""
    text, numbers = json.dumps(messages), dict[str, str]()
    return DRAWN.sub(lambda m: numbers.setdefault(m[0], f"id {len(numbers)}"), text)


DRAWN = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def then(*answers: Any) -> Callable[[list[BaseMessage]], Any]:
    """Answers in their order, by the number of answers so far."""

    def answer(messages: list[BaseMessage]) -> Any:
        number = sum(isinstance(m, AIMessage) for m in messages)
        return answers[number] if number < len(answers) else "Done."

    return answer


def with_tools(tools: list[Any], *answers: Any, **options: Any) -> Any:
    graph = StateGraph(MessagesState)
    model = Scripted(answer=then(*answers)).bind_tools(tools)

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode(tools, **options))
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition)
    graph.add_edge("tools", "ask")
    return graph.compile(checkpointer=InMemorySaver())


@tool
def injected(order: str, state: Annotated[dict[str, Any], InjectedState]) -> str:
    """Sees the graph's state."""
    return f"{order} among {len(state['messages'])}"


@tool
def runtime(order: str, runtime: ToolRuntime) -> str:
    """Sees the run."""
    return f"{order} as {runtime.tool_call_id}"


@tool
def odd(order: str) -> str:
    """JSON of its own spacing and escapes."""
    return '{"name":"M\\u00fcller",  "total":3.50 }'


@tool
def umlauts(order: str) -> dict[str, Any]:
    """Data with umlauts."""
    return {"name": "Müller", "total": 3.5}


@tool
def blocks(order: str) -> list[Any]:
    """Content blocks, as an MCP server gives them."""
    return [{"type": "text", "text": '{"ok": true}'}, {"type": "text", "text": "ü"}]


@tool(response_format="content_and_artifact")
def artefact(order: str) -> tuple[str, dict[str, Any]]:
    """Something beside the answer."""
    return "see the file", {"rows": [1, 2]}


@tool
def failing(order: str) -> str:
    """Raises."""
    raise ValueError("no such order")


def polite(order: str) -> str:
    raise ToolException("closed on Sundays")


handled = StructuredTool.from_function(
    polite, name="handled", description="Fails politely.", handle_tool_error=True
)


@pytest.mark.parametrize(
    "one_tool", [injected, runtime, odd, umlauts, blocks, artefact, failing, handled], ids=lambda t: t.name
)  # fmt: skip
async def test_a_tools_answer_is_the_same_to_the_byte(one_tool: Any, tmp_path: Path) -> None:
    call = called(one_tool.name, order="W1")
    (trace,) = await is_the_same_again(
        lambda: with_tools([one_tool], call, "Done.", handle_tool_errors=True), [HI], tmp_path
    )
    (used,) = trace.tool_calls
    assert used.arguments == {"order": "W1"}
    (message,) = [m for m in trace.messages if m["role"] == "tool"]
    assert message["content"]


def two_questions() -> Any:
    graph = StateGraph(MessagesState)

    def asks(name: str) -> Any:
        def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage(f"{name}: {interrupt(f'{name}?')}")]}

        return node

    for name in ("a", "b"):
        graph.add_node(name, asks(name))
        graph.add_edge(START, name)
    return graph.compile(checkpointer=InMemorySaver())


async def test_two_questions_at_once_are_answered_by_their_ids(tmp_path: Path) -> None:
    def answers(interrupts: Any) -> Any:
        return Command(resume={i.id: f"yes to {i.value}" for i in reversed(interrupts)})

    waiting, _ = await is_the_same_again(two_questions, [HI, answers], tmp_path)
    assert sorted(entry["value"] for entry in waiting.waits_for) == ["a?", "b?"]


async def test_the_whole_of_a_command_is_kept(tmp_path: Path) -> None:
    def asks() -> Any:
        def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage(f"{len(state['messages'])} {interrupt('ok?')}")]}

        return (
            StateGraph(MessagesState)
            .add_node("ask", node)
            .add_edge(START, "ask")
            .compile(checkpointer=InMemorySaver())
        )

    command: Any = Command(resume="yes", update={"messages": [HumanMessage("and hurry")]})
    _, resumed = await is_the_same_again(asks, [HI, command], tmp_path)
    assert set(resumed.input) == {"resume", "update"}


def of_supervisor() -> Any:
    from langgraph_supervisor import create_supervisor

    def delegate(messages: list[BaseMessage]) -> Any:
        if any(isinstance(m, ToolMessage) for m in messages):
            return "All is done."
        return called("transfer_to_clerk")

    clerk = create_agent(
        Scripted(answer=then(called("umlauts", order="W1"), "It is Müller's.")),
        [umlauts],
        name="clerk",
    )
    built = create_supervisor([clerk], model=Scripted(answer=delegate), prompt="Delegate.")
    return built.compile(checkpointer=InMemorySaver())


def of_swarm() -> Any:
    from langgraph_swarm import create_handoff_tool, create_swarm

    def hands_over(messages: list[BaseMessage]) -> Any:
        return called("transfer_to_bob")

    alice = create_agent(
        Scripted(answer=hands_over), [create_handoff_tool(agent_name="bob")], name="alice"
    )
    bob = create_agent(Scripted(answer=lambda messages: "Bob here."), [odd], name="bob")
    return create_swarm([alice, bob], default_active_agent="alice").compile(
        checkpointer=InMemorySaver()
    )


def of_deep_agents() -> Any:
    from deepagents import create_deep_agent

    todo = {"content": "look", "status": "pending"}
    model = Scripted(
        answer=then(called("write_todos", todos=[todo]), called("odd", order="W1"), "Done.")
    )
    return create_deep_agent(model=model, tools=[odd], checkpointer=InMemorySaver())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("package", [of_supervisor, of_swarm, of_deep_agents])
async def test_public_packages_are_replayed_to_the_byte(package: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package()
    traces = await is_the_same_again(package, [HI], tmp_path)
    assert traces[0].status == "completed"
    assert len(traces[0].model_calls) >= 2
    assert traces[0].tool_calls
