"""Customers of every kind keep one protocol; a model in their place is watched for what it makes up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.customer import (
    LEAVES,
    CustomerSimulator,
    ModelCustomer,
    RuleCustomer,
    ScriptedCustomer,
)
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.transport import close_connections
from stateset_agents.scenario import Act, Customer, Scenario
from stateset_agents.trace import Sampling
from tests.servers import Running

WHO = Customer(
    opening="Where is my order?",
    slots={"order_id": "W1234", "zip": "12345"},
    approves=(Act(tool="cancel_order", arguments={"order_id": "W1234"}),),
)


@asynccontextmanager
async def provider(answers: Callable[[list[dict[str, Any]]], str]) -> AsyncIterator[str]:
    """A provider on loopback that speaks OpenAI's protocol; what its model says is the test's."""
    app = FastAPI()

    @app.post("/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        body = await request.json()
        message = {"role": "assistant", "content": answers(body["messages"])}
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip

    async with Running(app) as url:
        yield url.removesuffix("/v1")
        await close_connections()


def honest(messages: list[dict[str, Any]]) -> str:
    """Answers from what the instructions say it knows, as a good model would."""
    question = messages[-1]["content"].lower()
    known = dict(part.split(": ") for part in messages[0]["content"].split("What you know: ")[1].split(". Answer")[0].split("; "))  # fmt: skip
    answers = [
        f"{slot} is {value}"
        for slot, value in known.items()
        if slot.replace("order id", "order number") in question
    ]
    return ". ".join(answers) if answers and "?" in question else LEAVES


@pytest.mark.parametrize("kind", ["rules", "script", "model"])
async def test_every_customer_opens_answers_and_leaves(kind: str) -> None:
    async with provider(honest) as url:
        customers: dict[str, CustomerSimulator] = {
            "rules": RuleCustomer(WHO),
            "script": ScriptedCustomer((WHO.opening, "My zip is 12345")),
            "model": ModelCustomer(WHO, connect(url, "m")),
        }
        customer = customers[kind]
        assert await customer.speak(None) == WHO.opening
        answer = await customer.speak("What is the zip code?")
        assert answer is not None
        assert "12345" in answer
        assert await customer.speak("It arrives on 3 May.") is None
        assert await customer.confirm("cancel_order", {"order_id": "W1234"})
        if kind != "script":  # who reads from a script agrees to everything
            assert not await customer.confirm("cancel_order", {"order_id": "W9999"})


async def test_a_model_plays_whole_episodes(development: list[Scenario]) -> None:
    async with provider(honest) as url:
        some = [s for s in development if s.intent == "shipping_status"][:4]
        traces = await asyncio.gather(
            *(
                play_episode(s, Oracle(plan=s.plan), Sampling(), customer=connect(url, "m"))
                for s in some
            )
        )
    assert {trace.status for trace in traces} == {"completed"}
    assert all(trace.goal_score is not None and trace.goal_score.success for trace in traces)
    # The customer's calls are not the policy's.
    assert {call.node for trace in traces for call in trace.model_calls} == {"policy"}


async def test_an_episode_in_which_the_customer_makes_something_up_is_invalid(
    development: list[Scenario],
) -> None:
    scenario = next(s for s in development if s.intent == "cancel")
    plan = (Act(say="What is the order number?"), Act(say="Thanks."))
    async with provider(lambda messages: "It is W99999 and I paid 12.34.") as url:
        trace = await play_episode(
            scenario, Oracle(plan=plan), Sampling(), customer=connect(url, "m")
        )
    assert trace.status == "failed"
    assert trace.error is not None
    assert "CustomerInvented" in trace.error
    assert "12.34" in trace.error
