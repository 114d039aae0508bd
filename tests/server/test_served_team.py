"""The orchestrator behind the endpoint: the customer sees one agent, whoever answers."""

import json
from typing import Any

import openai
import pytest

from stateset_agents.graphs import orchestrator
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.server.app import build
from stateset_agents.server.served import served_agents
from stateset_agents.tools.shop.generate import generate
from tests.servers import Running


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_agent_below_says_and_asks_reaches_the_client(stream: bool) -> None:
    shop = generate(1, "train").clone()
    order = shop.the("SELECT id, customer_id FROM orders WHERE status = 'pending' ORDER BY id")
    cancel = Act(say="One moment.", tool="cancel_order", arguments={"order_id": order["id"]})
    to_service = Act(tool="transfer", arguments={"agent": "service"})
    policy = Oracle(plan=(to_service, cancel, Act(say="It is cancelled.")))
    backends = orchestrator.over(shop)
    served = served_agents(
        compile=orchestrator.build,
        context=lambda thread: orchestrator.context(
            policy, backends, thread=thread, customer=order["customer_id"]
        ),
        step_limit=orchestrator.STEP_LIMIT,
    )
    messages: list[Any] = [{"role": "user", "content": "cancel my order"}]
    async with (
        Running(build({"orchestrator": served}, key=None)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        first = await text_of(client, messages, stream)
        assert first["content"].startswith("One moment.\ncancel order: order ")
        (call,) = first["tool_calls"]
        assert json.loads(call["function"]["arguments"])["tool"] == "cancel_order"
        answer = {"role": "tool", "tool_call_id": call["id"], "content": '{"confirmed": true}'}
        second = await text_of(client, [*messages, first, answer], stream)
        assert second["content"] == "It is cancelled."
    assert shop.the("SELECT status FROM orders WHERE id = ?", order["id"])["status"] == "cancelled"


async def text_of(client: openai.AsyncOpenAI, messages: list[Any], stream: bool) -> dict[str, Any]:
    """The endpoint's message, however it came."""
    if not stream:
        whole = await client.chat.completions.create(model="orchestrator", messages=messages)
        return whole.choices[0].message.model_dump(exclude_none=True)
    text, calls = "", []
    chunks = await client.chat.completions.create(
        model="orchestrator", messages=messages, stream=True
    )
    async for chunk in chunks:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        calls += [c.model_dump(include={"id", "type", "function"}) for c in delta.tool_calls or []]
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
