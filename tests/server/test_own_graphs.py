"""Graphs of somebody's own behind the endpoint: who speaks, what they ask, and what is refused before anything starts."""

import json
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from stateset_agents.errors import BadInput
from stateset_agents.jobs.served_graphs import OwnGraph
from stateset_agents.traces.store import TraceStore
from tests.own_graphs import (
    asking,
    compiled,
    drafts_and_speaks,
    endpoint,
    langchains,
    message_of,
    ours,
    refunded,
    requests,
    user,
)


@pytest.mark.parametrize("graph", [ours, langchains])
@pytest.mark.parametrize("agreed", [True, False])
async def test_the_client_decides_what_any_graph_asks_to_confirm(graph: Any, agreed: bool) -> None:
    async with endpoint(graph) as turn:
        first = message_of(await turn(user("Refund W1.")))
        (call,) = first["tool_calls"]
        assert call["function"]["name"] == "confirm"
        shown = json.loads(call["function"]["arguments"])
        assert (shown["tool"], shown["arguments"]) == ("refund", {"order": "W1"})
        assert first["content"]
        assert refunded == []
        yes = {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": json.dumps({"confirmed": agreed}),
        }
        last = message_of(await turn(user("Refund W1."), first, yes))
        assert refunded == (["W1"] if agreed else [])
        assert "heard" in last["content"]
        assert (
            message_of(await turn(user("Refund W1."), first, yes)) == last
        )  # requests again: once
        assert refunded == (["W1"] if agreed else [])


async def test_only_the_last_message_of_a_turn_reaches_the_customer() -> None:
    async with endpoint(drafts_and_speaks) as turn:
        assert message_of(await turn(user("hello")))["content"] == "heard: heard: hello"


async def test_the_node_that_speaks_is_streamed_and_the_others_are_not() -> None:
    async with endpoint(drafts_and_speaks, "speak") as turn:
        answer = await turn(user("hello"), stream=True)
        lines = [
            json.loads(line[6:])
            for line in answer.text.splitlines()
            if line.startswith("data: {")
        ]  # fmt: skip
        pieces = [c["delta"].get("content") for part in lines for c in part["choices"]]
        words = [piece for piece in pieces if piece]
        assert "".join(words).strip() == "heard: heard: hello"
        assert len(words) > 1


async def test_a_compiled_graph_gets_the_policy_and_the_clients_sampling() -> None:
    async with endpoint(compiled) as turn:
        answer = await turn(user("hello"), temperature=0.5, max_tokens=7)
        assert message_of(answer)["content"] == "heard: hello"
        assert (
            requests[-1]["temperature"],
            requests[-1].get("max_completion_tokens") or requests[-1]["max_tokens"],
        ) == (0.5, 7)
        assert answer.json()["usage"]["total_tokens"] == 5
        refusal = await turn({"role": "system", "content": "Be rude."}, user("hello"))
        assert refusal.status_code == 400
        assert "takes no system" in refusal.json()["error"]["message"]


async def test_a_conversation_goes_on_where_it_was() -> None:
    async with endpoint(compiled) as turn:
        first = message_of(await turn(user("hello")))
        message_of(await turn(user("hello"), first, user("more")))
        assert [m["content"] for m in requests[-1]["messages"]] == ["hello", "heard: hello", "more"]


async def test_a_plain_question_is_answered_by_plain_words() -> None:
    async with endpoint(asking("Which size?")) as turn:
        first = message_of(await turn(user("A shirt.")))
        assert first["content"] == "Which size?"
        assert first["tool_calls"][0]["function"]["name"] == "ask"
        assert (
            message_of(await turn(user("A shirt."), first, user("XL")))["content"] == 'noted "XL"'
        )


async def test_what_asks_for_a_form_is_answered_with_data() -> None:
    async with endpoint(asking({"question": "Your size?", "fields": ["size"]})) as turn:
        first = message_of(await turn(user("A shirt.")))
        (call,) = first["tool_calls"]
        assert (call["function"]["name"], first["content"]) == ("answer", "Your size?")
        assert (await turn(user("A shirt."), first, user("XL"))).status_code == 409
        form = {"role": "tool", "tool_call_id": call["id"], "content": '{"size": "XL"}'}
        assert (
            message_of(await turn(user("A shirt."), first, form))["content"]
            == 'noted {"size": "XL"}'
        )


async def test_a_decision_that_a_graph_does_not_take_is_refused_and_can_be_given_otherwise() -> (
    None
):
    question = {
        "action_requests": [
            {"name": "refund", "args": {"order": "W1"}, "description": "Pay W1 back?"}
        ],
        "review_configs": [{"action_name": "refund", "allowed_decisions": ["approve", "edit"]}],
    }
    async with endpoint(asking(question)) as turn:
        first = message_of(await turn(user("Refund.")))
        assert first["content"] == "Pay W1 back?"
        call = first["tool_calls"][0]["id"]
        no = {"role": "tool", "tool_call_id": call, "content": "no"}
        assert (await turn(user("Refund."), first, no)).status_code == 400
        yes = {**no, "content": "yes"}
        assert "approve" in message_of(await turn(user("Refund."), first, yes))["content"]


async def test_every_answer_is_recorded(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "t.db") as store:
        async with endpoint(langchains, store=store) as turn:
            first = message_of(await turn(user("Refund W1.")))
            yes = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "yes"}
            message_of(await turn(user("Refund W1."), first, yes))
    with TraceStore(tmp_path / "t.db") as store:
        traces = list(store.traces())
        assert [t.status for t in traces] == ["waiting", "completed"]
        assert [c.name for t in traces for c in t.tool_calls] == ["refund"]


class Numbers(TypedDict):
    count: int


@pytest.mark.parametrize(
    ("graph", "speakers", "reason"),
    [
        (StateGraph(MessagesState), (), "compile"),
        (compiled, ("nobody",), "--speaks: expected a node of the graph (speak)"),
        (StateGraph(Numbers).add_node("n", lambda s: s).add_edge(START, "n").compile(), (), "`messages`, found count"),
        (lambda model, world: None, (), "also needs world"),
        (7, (), "found int"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_before_anything_starts(
    graph: Any, speakers: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(BadInput) as error:
        OwnGraph(name="mine", graph=graph, speakers=speakers)
    assert reason in str(error.value)


async def test_an_answer_that_was_cut_off_says_so() -> None:
    async with endpoint(compiled) as turn:
        for limit, reason in ((1, "length"), (9, "stop")):
            answer = await turn(user("hello"), max_tokens=limit)
            assert answer.json()["choices"][0]["finish_reason"] == reason
