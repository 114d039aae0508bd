"""The official client holds a whole conversation with the endpoint, confirmation included."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from stateset_agents.errors import PolicyUnreachable
from stateset_agents.graphs import service
from stateset_agents.jobs.serve import service_app
from stateset_agents.jobs.served_graphs import ServedGraph
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.scenario import Scenario
from stateset_agents.server.app import build
from stateset_agents.server.served import served_agents
from stateset_agents.server.supervisor import free_port
from stateset_agents.tools.scenarios.replies import reply
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from tests.servers import Running


def app_with(policy: BaseChatModel, shop: Shop, key: str | None = None) -> FastAPI:
    served = served_agents(
        compile=service.build,
        context=lambda thread: service.context(policy, service.over(shop), thread=thread),
        step_limit=service.STEP_LIMIT,
    )
    return build({"service": served}, key=key)


@pytest.fixture
def refund(development: list[Scenario]) -> Scenario:
    return next(s for s in development if s.intent == "refund" and s.customer.approves)


@pytest.fixture
async def client_and_shop(refund: Scenario) -> AsyncIterator[tuple[openai.AsyncOpenAI, Shop]]:
    shop = generate(refund.shop_seed, "development").clone()
    async with (
        Running(app_with(Oracle(plan=refund.plan), shop)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client, shop


async def one_turn(
    client: openai.AsyncOpenAI, messages: list[Any], *, stream: bool
) -> dict[str, Any]:
    """The assistant's message, put together from chunks where it is streamed."""
    if not stream:
        whole = await client.chat.completions.create(model="service", messages=messages)
        return whole.choices[0].message.model_dump(exclude_none=True)
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    async for chunk in await client.chat.completions.create(
        model="service", messages=messages, stream=True
    ):
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                message.setdefault("tool_calls", []).append(
                    call.model_dump(exclude={"index"}, exclude_none=True)
                )
    return message


@pytest.mark.parametrize("stream", [False, True])
async def test_the_official_client_holds_a_whole_refund_conversation(
    client_and_shop: tuple[openai.AsyncOpenAI, Shop], refund: Scenario, stream: bool
) -> None:
    client, shop = client_and_shop
    messages: list[Any] = [{"role": "user", "content": refund.customer.opening}]
    confirmations = 0
    for _ in range(8):
        message = await one_turn(client, messages, stream=stream)
        messages.append(message)
        calls = message.get("tool_calls") or []
        if calls:
            confirmations += 1
            arguments = json.loads(calls[0]["function"]["arguments"])
            assert arguments["tool"] == "issue_refund"
            assert shop.changes() == ()
            answer = {
                "role": "tool",
                "tool_call_id": calls[0]["id"],
                "content": '{"confirmed": true}',
            }
            messages.append(answer)
            continue
        text = reply(refund.customer, message["content"])
        if text is None:
            break
        messages.append({"role": "user", "content": text})
    assert confirmations == 1
    assert refund.goal is not None
    assert shop.changes() == refund.goal.changes
    assert all(fact.said_in(messages[-1]["content"]) for fact in refund.goal.facts)


async def test_an_answer_to_nothing_pending_is_a_conflict(
    client_and_shop: tuple[openai.AsyncOpenAI, Shop],
) -> None:
    client, shop = client_and_shop
    messages: list[Any] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "confirm_x", "type": "function", "function": {"name": "confirm", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "confirm_x", "content": '{"confirmed": true}'},
    ]  # fmt: skip
    with pytest.raises(openai.ConflictError) as error:
        await client.chat.completions.create(model="service", messages=messages)
    assert error.value.response.headers["x-should-retry"] == "false"
    assert shop.changes() == ()


async def test_models_health_and_errors(client_and_shop: tuple[openai.AsyncOpenAI, Shop]) -> None:
    client, _ = client_and_shop
    assert [model.id async for model in client.models.list()] == ["service"]
    with pytest.raises(openai.NotFoundError, match="expected one of service"):
        await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "a"}])
    for bad in ([], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]):
        with pytest.raises(openai.BadRequestError) as error:
            await client.chat.completions.create(model="service", messages=bad)  # type: ignore[arg-type]
        assert error.value.request_id


async def test_a_key_is_asked_for_where_one_is_set() -> None:
    app = app_with(Oracle(plan=()), generate(1, "train").clone(), key="secret")
    async with Running(app) as url:
        async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with openai.AsyncOpenAI(base_url=url, api_key="secret") as client:
            assert (await client.models.list()).data


async def test_a_policy_that_is_gone_is_unavailable_and_no_traceback() -> None:
    shop = generate(1, "train").clone()
    app = service_app(
        ServedGraph(shop=shop),
        connect(f"http://127.0.0.1:{free_port()}/v1", "policy"),
        key=None,
    )
    async with (
        Running(app) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(
                model="service", messages=[{"role": "user", "content": "hi"}]
            )
        assert error.value.status_code == 503
        assert "Traceback" not in error.value.response.text


class Silent(BaseChatModel):
    """A policy that never answers, and knows when nobody waits for it any more."""

    left: asyncio.Event = Field(default_factory=asyncio.Event)

    @property
    def _llm_type(self) -> str:
        return "silent"

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("Expected the endpoint to await its policy, found a blocking call.")

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            self.left.set()


class Obedient(Silent):
    """Calls the tool that the customer's words name, then repeats what it answered."""

    order: str
    zip: str
    failures: list[Exception] = Field(default_factory=list)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        last, name, arguments = messages[-1], "", {"order_id": self.order}
        if isinstance(last, ToolMessage) and self.failures:
            raise self.failures.pop()
        if isinstance(last, HumanMessage) and "zip" in last.text:
            name, arguments = "verify_identity", {**arguments, "zip": self.zip}
        elif isinstance(last, HumanMessage) and "cancel" in last.text:
            name = "cancel_order"
        elif isinstance(last, HumanMessage) and "track" in last.text:
            name = "track_shipment"
        text = last.text if isinstance(last, ToolMessage) else "" if name else "Hello."
        calls = [{"name": name, "args": arguments, "id": f"c{len(messages)}"}] if name else []
        message = AIMessage(content=text, tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


def obedient(shop: Shop) -> Obedient:
    order = shop.first(
        "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id "
        "WHERE status = 'pending' ORDER BY orders.id"
    )
    assert order is not None
    return Obedient(order=order["id"], zip=order["zip"])


async def test_same_words_do_not_open_somebody_elses_conversation() -> None:
    """Two customers say the same; one verifies; the other must not be taken for them."""
    shop = generate(1, "train").clone()
    async with (
        Running(app_with(obedient(shop), shop)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):

        async def says(history: list[Any], words: str) -> list[Any]:
            arguments = [*history, {"role": "user", "content": words}]
            return [*arguments, await one_turn(client, arguments, stream=False)]

        mine, theirs = await says([], "Hi"), await says([], "Hi")
        mine = await says(mine, "my order and zip")
        assert "verified" in mine[-1]["content"]
        theirs = await says(theirs, "track it")
        assert "not_verified" in theirs[-1]["content"]
        assert "not_verified" not in (await says(mine, "track it"))[-1]["content"]


async def test_a_turn_that_failed_can_be_asked_again_and_writes_once() -> None:
    shop = generate(1, "train").clone()
    policy = obedient(shop)
    async with (
        Running(app_with(policy, shop)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "my order and zip"}]
        messages.append(await one_turn(client, messages, stream=False))
        messages.append({"role": "user", "content": "cancel it"})
        messages.append(await one_turn(client, messages, stream=False))
        call = messages[-1]["tool_calls"][0]
        yes = {"role": "tool", "tool_call_id": call["id"], "content": '{"confirmed": true}'}
        policy.failures.append(PolicyUnreachable("gone"))
        with pytest.raises(openai.InternalServerError):
            await one_turn(client, [*messages, yes], stream=False)
        answer = await one_turn(client, [*messages, yes], stream=False)
        assert "cancelled" in answer["content"]
        refunds = shop.all(
            "SELECT * FROM payments WHERE order_id = ? AND kind = 'refund'", policy.order
        )
        assert len(refunds) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_run_of_the_graph(stream: bool) -> None:
    policy = Silent()
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    async with Running(app_with(policy, generate(1, "train").clone())) as url:
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=0.5
        ) as client:
            with pytest.raises(Exception, match=r"(?i)time|^$") as left:
                await one_turn(client, messages, stream=stream)
            # The transport's own where it comes after the first byte of a stream.
            assert "Timeout" in type(left.value).__name__
        await asyncio.wait_for(policy.left.wait(), 5)


async def test_a_failure_nobody_foresaw_has_a_request_id_and_no_traceback() -> None:
    class Broken(Silent):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("secret detail")

    async with (
        Running(app_with(Broken(), generate(1, "train").clone())) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as error:
            await one_turn(client, [{"role": "user", "content": "hi"}], stream=False)
        assert error.value.request_id
        assert "secret" not in error.value.response.text


async def test_the_seed_policy_answers_through_the_endpoint(engine: str) -> None:
    shop = generate(1, "train").clone()
    async with (
        Running(service_app(ServedGraph(shop=shop), connect(engine, "policy"), key=None)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(
            model="service", messages=[{"role": "user", "content": "Please cancel my order."}]
        )
        assert "?" in (answer.choices[0].message.content or "")
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
