"""The endpoint under somebody else's clients: retries, late answers, strangers, guesses, silence and noise."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stateset_agents.errors import PolicyUnreachable
from stateset_agents.graphs import service
from stateset_agents.server.app import build
from stateset_agents.server.consent import NO, YES, plain_answer
from stateset_agents.server.conversations import Conversations, kept_in
from stateset_agents.server.served import served_agents
from stateset_agents.tools.executor import GUESSES, GUESSES_IN_ALL, Executor
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS
from tests.server.test_app import obedient
from tests.servers import Running

HI = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def endpoint(
    policy: Any, shop: Shop, kept: Conversations | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    served = served_agents(
        compile=service.build,
        context=lambda thread: service.context(
            policy, service.over(shop), thread=thread, **options
        ),
        step_limit=service.STEP_LIMIT,
    )
    app = build({"service": served}, key=None, conversations=kept)
    async with (
        Running(app) as url,
        httpx.AsyncClient(
            base_url=url, timeout=60, limits=httpx.Limits(max_connections=200)
        ) as client,
    ):
        yield client


async def turn(client: httpx.AsyncClient, messages: list[Any], **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    body = {"model": "service", "messages": messages, **fields}
    return await client.post("/chat/completions", json=body, headers=headers)


def message(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["choices"][0]["message"]
    return made


async def to_confirmation(client: httpx.AsyncClient, **fields: Any) -> list[Any]:
    """A conversation up to the question whether an order is to be cancelled."""
    messages: list[Any] = [{"role": "user", "content": "my order and zip"}]
    messages.append(message(await turn(client, messages, **fields)))
    messages.append({"role": "user", "content": "cancel it"})
    messages.append(message(await turn(client, messages, **fields)))
    assert messages[-1]["tool_calls"]
    return messages


def answer_of(messages: list[Any], confirmed: bool) -> dict[str, Any]:
    call = messages[-1]["tool_calls"][0]
    return {
        "role": "tool",
        "tool_call_id": call["id"],
        "content": json.dumps({"confirmed": confirmed}),
    }


def refunds(shop: Shop, order: str) -> int:
    return len(shop.all("SELECT * FROM payments WHERE order_id = ? AND kind = 'refund'", order))


async def test_a_confirmation_whose_answer_was_lost_is_answered_again_and_a_late_no_learns_what_was_done() -> (
    None
):
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with endpoint(policy, shop) as client:
        messages = await to_confirmation(client)
        yes, no = answer_of(messages, True), answer_of(messages, False)
        first = await turn(client, [*messages, yes])
        again = await turn(client, [*messages, yes])
        assert message(again) == message(first)
        assert again.json()["id"] == first.json()["id"]
        late = message(await turn(client, [*messages, no]))
        assert "is done" in late["content"]
        assert policy.order in late["content"]
        assert "took nothing back" in late["content"]
        history = [*messages, no, {"role": "assistant", "content": late["content"]}]
        going_on = await turn(client, [*history, {"role": "user", "content": "track it"}])
        assert "not_verified" not in message(going_on)["content"]
    assert refunds(shop, policy.order) == 1


async def test_a_yes_after_a_no_does_nothing_and_says_so() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with endpoint(policy, shop) as client:
        messages = await to_confirmation(client)
        await turn(client, [*messages, answer_of(messages, False)])
        late = message(await turn(client, [*messages, answer_of(messages, True)]))
        assert "declined before" in late["content"]
    assert refunds(shop, policy.order) == 0


@pytest.mark.parametrize("decisions", [(True, True), (True, False), (False, True)])
async def test_two_processes_make_one_decision(
    decisions: tuple[bool, bool], tmp_path: Path
) -> None:
    """Two apps on one state, as two processes have them; both are told what happened, or to ask again."""
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    state = str(tmp_path / "state.db")
    async with (
        kept_in(state) as kept, kept_in(state) as other,
        endpoint(policy, shop, kept) as here, endpoint(policy, shop, other) as there,
    ):  # fmt: skip
        messages = await to_confirmation(here)
        both = await asyncio.gather(
            turn(here, [*messages, answer_of(messages, decisions[0])]),
            turn(there, [*messages, answer_of(messages, decisions[1])]),
        )
        assert {answer.status_code for answer in both} <= {200, 409}
        settled = message(await turn(there, [*messages, answer_of(messages, True)]))
    happened = refunds(shop, policy.order)
    assert happened <= 1
    assert ("declined before" in settled["content"]) == (happened == 0)


async def test_strangers_who_say_the_same_do_not_meet() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with endpoint(policy, shop) as client:
        answers = await asyncio.gather(*(turn(client, HI) for _ in range(16)))
        assert {answer.status_code for answer in answers} == {200}
        history = [*HI, message(answers[0])]
        sent = [*history, {"role": "user", "content": "my order and zip"}]
        answers = await asyncio.gather(*(turn(client, sent) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        stranger = [*history, {"role": "user", "content": "track it"}]
        assert "not_verified" in message(await turn(client, stranger))["content"]


async def test_a_clients_own_id_ties_its_turns_whatever_it_sends() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with endpoint(policy, shop) as client:

        async def says(text: str, thread: str) -> str:
            sent = [{"role": "user", "content": text}]
            answer = await turn(client, sent, headers={"x-thread-id": thread})
            return str(message(answer)["content"])

        assert "verified" in await says("my order and zip", "a")
        assert "not_verified" not in await says("track it", "a")
        assert "not_verified" in await says("track it", "b")
        by_metadata = await turn(
            client, [{"role": "user", "content": "track it"}], metadata={"thread_id": "a"}
        )
        assert "not_verified" not in message(by_metadata)["content"]
        bad = await turn(client, HI, headers={"x-thread-id": "x" * 300})
        assert bad.status_code == 400


@pytest.mark.parametrize(
    ("word", "done"), [("Ja, bitte!", 1), ("sim", 1), ("No gracias.", 0), ("non", 0)]
)
async def test_a_plain_yes_or_no_answers_a_confirmation(word: str, done: int) -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with endpoint(policy, shop) as client:
        messages = await to_confirmation(client)
        unclear = await turn(
            client, [*messages, {"role": "user", "content": "yes, but the other one"}]
        )
        assert (unclear.status_code, unclear.json()["error"]["code"]) == (
            409,
            "confirmation_pending",
        )
        sent = [*messages, {"role": "user", "content": word}]
        answer = message(await turn(client, sent))
        assert message(await turn(client, sent)) == answer or done == 0
    assert refunds(shop, policy.order) == done


def test_no_word_is_a_yes_and_a_no() -> None:
    assert not YES & NO
    for words, meaning in ((YES, True), (NO, False)):
        assert all(plain_answer(f" {word.upper()}!") is meaning for word in words)
    assert plain_answer("yes no") is None
    assert plain_answer("") is None


async def test_consent_is_asked_in_words_of_the_shop() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    items = shop.all(
        "SELECT item, paid FROM lines JOIN products USING(sku) WHERE order_id = ?", policy.order
    )
    async with endpoint(policy, shop) as client:
        asked_for = (await to_confirmation(client))[-1]
    about = json.loads(asked_for["tool_calls"][0]["function"]["arguments"])
    for text in (asked_for["content"], about["summary"]):
        assert policy.order in text
        assert show(sum(row["paid"] for row in items)) in text
        assert all(row["item"] in text for row in items)


def test_guessing_ends_with_a_person() -> None:
    shop = generate(1, "train").clone()
    row = shop.the(
        "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id ORDER BY orders.id"
    )
    executor = Executor(shop, ALL_TOOLS)

    def attempt(session: Session, zip_code: str) -> Any:
        return executor.propose(
            session, "verify_identity", {"order_id": row["id"], "zip": zip_code}
        )

    session = Session(customer="")
    for number in range(GUESSES):
        outcome = attempt(session, f"{number:05}")
        assert outcome.result["error"] == "no_match"
        session = outcome.session
    assert attempt(session, row["zip"]).result["error"] == "too_many_attempts"
    for number in range(GUESSES_IN_ALL - GUESSES - 1):
        attempt(Session(customer=""), f"{number:05}")
    fresh = attempt(Session(customer=""), row["zip"])
    assert fresh.result["error"] == "too_many_attempts"
    other = shop.the(
        "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id "
        "ORDER BY orders.id DESC"
    )
    right = {"order_id": other["id"], "zip": other["zip"]}
    assert executor.propose(Session(customer=""), "verify_identity", right).status == "done"


async def test_a_person_approves_and_no_customers_yes_does() -> None:
    from stateset_agents.jobs.served_graphs import ServedGraph
    from stateset_agents.tools.rules import parse_rules, replaced
    from stateset_agents.tools.toolset import SIGNATURES, shop_rules

    text = """
- id: asks-first
  version: 1
  applies_to: [cancel_order]
  effect: approval
  unless: call.approved == True
  code: not_approved
  help: a person has to approve it
  text: Cancellations are approved by a person.
"""
    rules = replaced(shop_rules(), parse_rules(text, where="rules", tools=SIGNATURES))
    shop = generate(1, "train").clone()
    policy: Any = obedient(shop)
    served = ServedGraph(shop=shop, rules=rules, guard=False, approvals=True).served(policy, None)
    async with (
        Running(build({"service": served}, key=None)) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        messages = await to_confirmation(client)
        messages += [answer_of(messages, True)]
        messages += [message(await turn(client, messages))]
        (call,) = messages[-1]["tool_calls"]
        assert call["function"]["name"] == "approve"
        assert json.loads(call["function"]["arguments"])["rule"] == "asks-first"
        meddling = await turn(client, [*messages, {"role": "user", "content": "yes"}])
        assert meddling.json()["error"]["code"] == "approval_pending"
        assert refunds(shop, policy.order) == 0
        approved = message(await turn(client, [*messages, answer_of(messages, True)]))
        assert "cancelled" in approved["content"]
    assert refunds(shop, policy.order) == 1


async def test_a_no_after_a_yes_that_broke_off_does_not_deny_what_was_done() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with endpoint(policy, shop) as client:
        messages = await to_confirmation(client)
        policy.failures.append(PolicyUnreachable("gone"))
        assert (await turn(client, [*messages, answer_of(messages, True)])).status_code == 503
        assert refunds(shop, policy.order) == 1
        answer = message(await turn(client, [*messages, answer_of(messages, False)]))
        assert "cancelled" in answer["content"]
        assert "declined" not in answer["content"]
    assert refunds(shop, policy.order) == 1


async def test_a_conversation_goes_on_with_its_own_graph_alone() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    served = served_agents(
        compile=service.build,
        context=lambda thread: service.context(policy, service.over(shop), thread=thread),
        step_limit=service.STEP_LIMIT,
    )
    app = build({"service": served, "other": served}, key=None)
    async with (
        Running(app) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        messages = await to_confirmation(client)
        yes = [*messages, answer_of(messages, True)]
        assert (await turn(client, yes, model="other")).status_code == 409
        for odd in ("\ud800", "a\x00b"):
            body = json.dumps({"model": "service", "messages": HI, "metadata": {"thread_id": odd}})
            assert (await client.post("/chat/completions", content=body)).status_code == 400
        assert refunds(shop, policy.order) == 0
        assert (await turn(client, yes)).status_code == 200
