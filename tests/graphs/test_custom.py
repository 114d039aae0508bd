"""Graphs of somebody else's as episodes: who answers what they ask, and what their traces hold."""

import threading
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

from stateset_agents import build_graph
from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Customer, Goal, Scenario
from stateset_agents.trace import Sampling, Trace

REFUND = Act(tool="refund", arguments={"order": "W1"})
OTHER = Act(tool="refund", arguments={"order": "W2"})
BUYER = Customer(opening="Refund W1, please.", approves=(REFUND,))


class Shop:
    """Orders that were paid back."""

    def __init__(self) -> None:
        self.refunded: list[str] = []
        self.closed = False

    def clone(self) -> "Shop":
        twin = Shop()
        twin.refunded = list(self.refunded)
        return twin

    def close(self) -> None:
        self.closed = True

    @property
    def tools(self) -> list[Any]:
        @tool
        def refund(order: str) -> str:
            """Pay back an order."""
            self.refunded.append(order)
            return f"refunded {order}"

        return [refund]


shops: list[Shop] = []


def opened(scenario: Scenario) -> Shop:
    shops.append(Shop())
    return shops[-1]


def ours(model: Any, shop: Shop) -> Any:
    return build_graph(
        "till", prompt="Help.", policy=model, tools=shop.tools, writes=["refund"], guard=False
    )


def langchains(model: Any, shop: Shop) -> Any:
    asks = HumanInTheLoopMiddleware(interrupt_on={"refund": True})
    return create_agent(model, shop.tools, middleware=[asks])


class Talk(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def by_hand(model: Any, shop: Shop) -> Any:
    """A graph whose node calls a plain function, after it asked the way an agent inbox does."""
    (refund,) = shop.tools
    bound = model.bind_tools(shop.tools)

    async def speak(state: Talk) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    def act(state: Talk) -> dict[str, Any]:
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        (call,) = last.tool_calls
        request = {"action": call["name"], "args": call["args"]}
        answers = interrupt([{"action_request": request, "config": {"allow_ignore": True}}])
        if answers[0]["type"] != "accept":
            answer = "the customer said no"
            status: Any = "error"
        else:
            answer, status = refund.func(**call["args"]), "success"
        return {"messages": [ToolMessage(answer, tool_call_id=call["id"], status=status)]}

    graph = StateGraph(Talk)
    graph.add_node("speak", speak)
    graph.add_node("act", act)
    graph.add_edge(START, "speak")
    graph.add_conditional_edges(
        "speak", lambda state: "act" if state["messages"][-1].tool_calls else END, ["act", END]
    )
    graph.add_edge("act", "speak")
    return graph.compile()


async def play(graph: Any, *acts: Act, world: Any = opened, **scenario: Any) -> Trace:
    fields = {"id": "s", "customer": BUYER, **scenario}
    policy = Oracle(plan=(*acts, Act(say="All done.")))
    return await CustomGraph(graph, "mine", world=world).play_episode(
        Scenario(**fields), policy, Sampling()
    )


@pytest.mark.parametrize("graph", [ours, langchains, by_hand])
async def test_the_scenarios_customer_answers_what_a_graph_asks_to_confirm(graph: Any) -> None:
    trace = await play(graph, REFUND)
    assert (trace.status, trace.error) == ("completed", None)
    assert shops[-1].refunded == ["W1"]
    assert shops[-1].closed
    assert trace.messages[-1]["content"] == "All done."
    (call,) = trace.tool_calls
    assert (call.name, call.arguments, call.status) == ("refund", {"order": "W1"}, "done")


@pytest.mark.parametrize("graph", [ours, langchains, by_hand])
async def test_what_the_customer_does_not_want_is_not_done(graph: Any) -> None:
    scripted = Customer(user_responses=("Refund W1, please.",), approves=(REFUND,))
    for customer in (BUYER, scripted):
        trace = await play(graph, OTHER, customer=customer)
        assert (trace.status, shops[-1].refunded) == ("completed", [])
        assert [call.status for call in trace.tool_calls] in ([], ["declined"], ["failed"])


def unconfirmed(model: Any, shop: Shop) -> Any:
    return create_agent(model, shop.tools)


async def test_a_goal_sees_the_tools_of_any_graph() -> None:
    forbidden = await play(unconfirmed, REFUND, goal=Goal(forbidden=("refund",)))
    assert forbidden.goal_score is not None
    assert not forbidden.goal_score.success
    assert forbidden.goal_score.forbidden == ("refund",)
    consulted = await play(unconfirmed, REFUND, goal=Goal(consulted=(("refund", "look"),)))
    assert consulted.goal_score is not None
    assert consulted.goal_score.success


async def test_a_graph_that_nobody_can_answer_is_waiting_and_no_success() -> None:
    def graph(model: Any) -> Any:
        def node(state: Talk) -> dict[str, Any]:
            interrupt({"kind": "signature", "page": 3})
            return {}

        built = StateGraph(Talk)
        built.add_node("sign", node)
        built.add_edge(START, "sign")
        return built.compile()

    trace = await play(graph, world=None, goal=Goal())
    assert trace.status == "waiting"
    assert "signature" in str(trace.error)
    assert trace.goal_score is not None
    assert not trace.goal_score.success


async def test_the_customer_says_all_it_has_to_say() -> None:
    lines = ("I need help.", "With W1.", "Thanks.")
    trace = await play(
        unconfirmed, Act(say="Which order?"), customer=Customer(user_responses=lines)
    )
    spoken = [m["content"] for m in trace.messages if m["role"] == "user"]
    assert tuple(spoken) == lines
    knows = Customer(
        opening="Refund it.", slots={"order_id": "W1"}, answers={"order_id": "It is {}."}
    )
    trace = await play(unconfirmed, Act(say="What is your order number?"), customer=knows)
    assert [m["content"] for m in trace.messages if m["role"] == "user"][1:] == ["It is W1."]


async def test_a_question_in_an_interrupt_is_answered_in_words() -> None:
    def graph(model: Any) -> Any:
        def node(state: Talk) -> dict[str, Any]:
            return {"messages": [HumanMessage(interrupt("What is your order number?"))]}

        built = StateGraph(Talk)
        built.add_node("ask", node)
        built.add_edge(START, "ask")
        return built.compile()

    knows = Customer(opening="Hi.", slots={"order_id": "W1"}, answers={"order_id": "It is {}."})
    trace = await play(graph, world=None, customer=knows)
    assert trace.messages[-1]["content"] == "It is W1."


async def test_any_state_and_any_result_is_played() -> None:
    class Locked(TypedDict):
        lock: Any
        count: int

    def graph(model: Any) -> Any:
        built = StateGraph(Locked)
        built.add_node("count", lambda state: {"count": 3, "lock": threading.Lock()})
        built.add_edge(START, "count")
        return built.compile()

    trace = await play(graph, world=None, input={"count": 1})
    assert (trace.status, (trace.output or {})["count"]) == ("completed", 3)

    def functional(model: Any) -> Any:
        @entrypoint()
        async def answer(given: dict[str, Any]) -> str:
            return "forty-two"

        return answer

    trace = await play(functional, world=None, input={"question": "?"})
    assert (trace.status, trace.output) == ("completed", {"output": "forty-two"})


async def test_a_world_may_bring_its_own_customer() -> None:
    class Nods:
        async def speak(self, agent_said: str | None) -> str | None:
            return "Do it." if agent_said is None else None

        async def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
            return True

        async def answer(self, question: Any) -> Any:
            return {"confirmed": True} if isinstance(question, dict) else None

        def copy(self) -> "Nods":
            return self

    class Own(Shop):
        customer = Nods()

    def world(scenario: Scenario) -> Shop:
        shops.append(Own())
        return shops[-1]

    await play(ours, REFUND, world=world)
    assert shops[-1].refunded == ["W1"]
