"""Synchronous callers, such as nodes that are no coroutines: the pool answers them from a loop in a thread of its own."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from stateset_agents.errors import PolicyUnreachable
from stateset_agents.policy import blocking_portal
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.completion import fetch
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.publishing import Publisher
from stateset_agents.tools.toolset import SERVICE_PROMPT
from stateset_agents.trace import Sampling
from tests.policy_double import doubles, lose_the_first, small_adapter


async def test_a_synchronous_node_is_answered_as_any_other(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost answer is asked for again, a later call carries its prompt as ids, and a stream comes as it is made."""
    async with doubles(1) as (server,):
        server.act = lose_the_first
        policy = connect(server.url, "policy", retry_seconds=10)
        message = await asyncio.to_thread(policy.invoke, [HumanMessage("hi")])
        tokens = fetch(message.response_metadata["id"])
        assert tokens is not None
        assert (tokens.sampled_ids, tokens.tries) == ((2, 1), 2)

    seen: list[dict[str, Any]] = []
    plain = ReplicaPool.post

    async def listening(self: ReplicaPool, path: str, body: dict[str, Any], **options: Any) -> Any:
        seen.append(body)
        return await plain(self, path, body, **options)

    monkeypatch.setattr(ReplicaPool, "post", listening)
    policy = connect(engine, "policy").sampling(Sampling(version="policy", seed=5))

    def conversation() -> tuple[Any, Any, list[str]]:
        messages: list[BaseMessage] = [
            SystemMessage(SERVICE_PROMPT),
            HumanMessage("Where is my order?"),
        ]
        first = policy.invoke(messages)
        second = policy.invoke([*messages, first, HumanMessage("It is W1.")])
        streaming = policy.model_copy(update={"disable_streaming": False})
        return first, second, [chunk.text for chunk in streaming.stream(messages)]

    first, second, streamed = await asyncio.to_thread(conversation)
    first_tokens, two = (fetch(message.response_metadata["id"]) for message in (first, second))
    assert first_tokens is not None
    assert two is not None
    before = [*first_tokens.prompt_ids, *first_tokens.sampled_ids]
    assert list(two.prompt_ids[: len(before)]) == before
    sent = [body["kv_transfer_params"] for body in seen if "kv_transfer_params" in body]
    assert sent == [{"prompt_token_ids": list(two.prompt_ids)}]
    assert len(streamed) > 2
    assert "".join(streamed)


async def test_a_caller_that_leaves_a_synchronous_stream_leaves_the_server() -> None:
    async with doubles(1) as (server,):

        async def endless(number: int, body: dict[str, Any]) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(server.request)
            while True:
                delta = {"index": 0, "delta": {"content": "la "}, "finish_reason": None}
                event = {"id": "c", "model": "policy", "choices": [delta]}
                await response.write(f"data: {json.dumps(event)}\n\n".encode())
                await asyncio.sleep(0.01)

        server.act = endless
        policy = connect(server.url, "policy").model_copy(update={"disable_streaming": False})

        def two() -> list[str]:
            chunks = policy.stream([HumanMessage("hi")])
            return [next(chunks).text, next(chunks).text]

        assert await asyncio.to_thread(two) == ["la ", "la "]
        for _ in range(200):
            if server.running == 0:
                break
            await asyncio.sleep(0.02)
        assert server.running == 0
        assert policy.pool.replicas[0].running == 0


async def test_a_synchronous_node_outlives_no_job_that_waited_for_its_servers() -> None:
    """The graph is cancelled, and its thread hears nothing of it."""
    async with doubles(1) as (server,):
        policy = connect(server.url, "policy", retry_seconds=60)
        await server.stop()

        def node() -> None:
            policy.invoke([HumanMessage("hi")])

        with policy.pool.lease():
            asking = asyncio.create_task(asyncio.to_thread(node))
            await asyncio.sleep(0.3)
        with pytest.raises(PolicyUnreachable):
            await asyncio.wait_for(asking, 10)
        await server.start()
        again = asyncio.create_task(asyncio.to_thread(policy.invoke, [HumanMessage("hi")]))
        assert (await again).text


async def test_synchronous_calls_end_with_the_process_and_wait_for_no_place() -> None:
    async with doubles(1) as (server,):
        never = asyncio.Event()

        async def waits(number: int, body: dict[str, Any]) -> None:
            if number <= 2:
                await never.wait()

        server.act = waits
        servers = pool_at(server.url)
        servers.max_running = 2
        policy = connect(server.url, "policy")
        both = [asyncio.create_task(policy.ainvoke([HumanMessage("hi")])) for _ in range(2)]
        await asyncio.sleep(0.2)
        message = await asyncio.to_thread(policy.invoke, [HumanMessage("hi")])
        assert message.text
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)

        async def longer(number: int, body: dict[str, Any]) -> None:
            await never.wait()

        server.act = longer
        asking = asyncio.create_task(asyncio.to_thread(policy.invoke, [HumanMessage("hi")]))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(blocking_portal.close)
        with pytest.raises(RuntimeError, match="was ended"):
            await asyncio.wait_for(asking, 5)


async def test_two_loops_that_load_a_version_at_once_load_it_once(tmp_path: Path) -> None:
    async with doubles(1) as (server,):
        policy = connect(server.url, "run-v1", retry_seconds=10)
        await Publisher(policy.pool).publish("run-v1", small_adapter(tmp_path / "one"))
        server.versions.clear()  # it was restarted
        loads = server.loads
        calls = [asyncio.to_thread(policy.invoke, [HumanMessage("hi")]) for _ in range(3)]
        calls += [policy.ainvoke([HumanMessage("hi")]) for _ in range(3)]
        assert len(await asyncio.gather(*calls)) == 6
        assert server.loads == loads + 1
