"""What graphs of somebody's own ask in odd forms, side by side or of a client who has left."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from stateset_agents.errors import BadInput
from stateset_agents.jobs.served_graphs import OwnGraph
from tests.own_graphs import (
    Talk,
    asking,
    endpoint,
    message_of,
    refunded,
    user,
)


async def test_who_leaves_and_asks_again_after_a_yes_gets_one_refund() -> None:
    """A client's time runs out while the model speaks; the tool has run."""
    slow = asyncio.Event()

    @tool("refund")
    def slow_refund(order: str) -> str:
        """Pay back an order."""
        refunded.append(order)
        return f"refunded {order}"

    def graph(model: Any) -> Any:
        async def wait(state: Talk) -> dict[str, Any]:
            if refunded:
                slow.set()
                await asyncio.sleep(1.0)
            return {}

        inner = create_agent(
            model,
            [slow_refund],
            middleware=[HumanInTheLoopMiddleware(interrupt_on={"refund": True})],
        )
        outer = StateGraph(Talk)
        outer.add_node("agent", inner)
        outer.add_node("wait", wait)
        outer.add_edge(START, "agent")
        outer.add_edge("agent", "wait")
        outer.add_edge("wait", END)
        return outer.compile()

    async with endpoint(graph) as turn:
        first = message_of(await turn(user("Refund W1.")))
        yes = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "yes"}
        leaving = asyncio.ensure_future(turn(user("Refund W1."), first, yes))
        await slow.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        no = {**yes, "content": "no"}
        for _ in range(50):
            answer = await turn(user("Refund W1."), first, yes)
            if answer.status_code != 409:
                break
            await asyncio.sleep(0.1)
        assert "refunded W1" in message_of(answer)["content"]
        assert (
            "took nothing back" in message_of(await turn(user("Refund W1."), first, no))["content"]
        )
        assert refunded == ["W1"]


async def test_two_customers_with_the_same_words_each_answer_their_own_question() -> None:
    async with endpoint(asking("Which size?")) as turn:
        firsts = [message_of(await turn(user("A shirt."))) for _ in range(2)]
        for size, first in zip(("S", "XL"), firsts, strict=True):
            answer = await turn(user("A shirt."), first, user(size))
            assert message_of(answer)["content"] == f'noted "{size}"'


def two_questions(model: Any) -> Any:
    def node(name: str) -> Any:
        def ask(state: Talk) -> dict[str, Any]:
            return {"messages": [("ai", f"{name}={interrupt(f'{name}?')}")]}

        return ask

    graph = StateGraph(Talk)
    for name in ("colour", "size"):
        graph.add_node(name, node(name))
        graph.add_edge(START, name)
        graph.add_edge(name, END)
    return graph.compile()


async def test_questions_side_by_side_are_asked_and_answered_one_by_one() -> None:
    async with endpoint(two_questions) as turn:
        talk: list[Any] = [user("A shirt.")]
        heard = []
        for words in ("first", "second", None):
            talk.append(message_of(await turn(*talk)))
            heard.append(talk[-1]["content"])
            talk += [user(words)] if words else []
        assert sorted(heard[:2]) == ["colour?", "size?"]
        names = [text.rstrip("?") for text in heard[:2]]
        assert heard[2] in (f"{names[0]}=first", f"{names[1]}=second")


@pytest.mark.parametrize(
    "question",
    [
        {"action_requests": [{"name": "x", "args": "y"}]},
        [{"action_request": {"action": "x", "args": "q"}}],
        {"type": "confirmation", "tool": "x", "arguments": ["a"]},
        {"action_requests": []},
        [],
        None,
        7,
    ],
)
async def test_a_question_of_any_form_can_be_answered(question: Any) -> None:
    async with endpoint(asking(question)) as turn:
        first = message_of(await turn(user("Go.")))
        (call,) = first["tool_calls"]
        assert call["function"]["name"] == "answer"
        form = {"role": "tool", "tool_call_id": call["id"], "content": '{"a": 1}'}
        assert message_of(await turn(user("Go."), first, form))["content"] == 'noted {"a": 1}'


async def test_reviews_without_decisions_take_a_yes_and_a_no() -> None:
    for reviews in (None, [], [{"action_name": "refund"}]):
        question = {
            "action_requests": [{"name": "refund", "args": None}],
            "review_configs": reviews,
        }
        async with endpoint(asking(question)) as turn:
            first = message_of(await turn(user("Refund.")))
            no = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "no"}
            assert "reject" in message_of(await turn(user("Refund."), first, no))["content"]


def says_twice(model: Any) -> Any:
    async def speak(state: Talk) -> dict[str, Any]:
        answer = await model.ainvoke(state["messages"])
        return {"messages": [AIMessage(answer.text, name="agent")]}

    return StateGraph(Talk).add_node("speak", speak).add_edge(START, "speak").compile()


def ends_with_a_tool(model: Any) -> Any:
    def act(state: Talk) -> dict[str, Any]:
        return {
            "messages": [
                AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": "1"}]),
                ToolMessage("42", tool_call_id="1"),
            ]
        }

    return StateGraph(Talk).add_node("act", act).add_edge(START, "act").compile()


async def test_words_are_heard_once_and_a_tools_answer_where_it_is_the_last_word() -> None:
    async with endpoint(says_twice, "speak") as turn:
        assert message_of(await turn(user("hello")))["content"].strip() == "heard: hello"
    async with endpoint(ends_with_a_tool) as turn:
        assert message_of(await turn(user("hello")))["content"] == "42"


async def test_breakpoints_that_nobody_answers_are_refused() -> None:
    builder = StateGraph(MessagesState).add_node("act", lambda state: {}).add_edge(START, "act")
    with pytest.raises(BadInput, match="breakpoints"):
        OwnGraph(name="mine", graph=builder.compile(interrupt_before=["act"]))
    with pytest.raises(BadInput, match="compiled LangGraph graph"):
        OwnGraph(name="mine", graph=RunnableLambda(lambda messages: messages))
