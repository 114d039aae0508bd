"""The pool of policy servers: retries that sample into one trace once, the breaker, room, homes of conversations, versions."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from langchain_core.messages import (
    HumanMessage,
)

from stateset_agents.errors import PolicyRefused, PolicyUnreachable
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.policy import pool, transport
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.completion import fetch
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling
from tests.policy_double import (
    BODY,
    Drop,
    doubles,
    lose_the_first,
    pooled,
)


async def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_seed_and_marked() -> None:
    async with doubles(1) as (server,):
        server.act = lose_the_first
        policy = connect(server.url, "policy", retry_seconds=10).sampling(
            Sampling(version="policy", seed=5)
        )
        message = await policy.ainvoke([HumanMessage("hi")])
        assert [body["seed"] for body in server.requests] == [server.requests[0]["seed"]] * 2
        tokens = fetch(message.response_metadata["id"])
        assert tokens is not None
        # The tokens are those of the answer that came, and of no other.
        assert (tokens.sampled_ids, tokens.tries) == ((2, 1), 2)


async def test_without_patience_a_lost_answer_is_an_error_at_once() -> None:
    async with doubles(1) as (server,):

        async def lost(number: int, body: dict[str, Any]) -> None:
            raise Drop

        server.act = lost
        with pytest.raises(PolicyUnreachable, match="found none"):
            await connect(server.url, "policy").ainvoke([HumanMessage("hi")])
        assert len(server.requests) == 1


async def test_a_server_that_dies_costs_only_its_own_calls_which_go_elsewhere() -> None:
    async with doubles(2, seconds=0.8) as made:
        servers = pooled(made)
        calls = [asyncio.create_task(servers.post("/chat/completions", BODY)) for _ in range(20)]
        await asyncio.sleep(0.1)
        await made[0].stop()
        answers = await asyncio.gather(*calls)
        assert len({body["id"] for body, _ in answers}) == 20
        again = [sent for _, sent in answers if sent.tries > 1]
        assert 0 < len(again) <= 10
        assert {sent.replica for sent in again} == {made[1].url}
        # Nobody asks the dead one any more.
        answers = await asyncio.gather(*(servers.post("/chat/completions", BODY) for _ in range(8)))
        assert {(sent.replica, sent.tries) for _, sent in answers} == {(made[1].url, 1)}
        await made[0].start()


async def test_calls_wait_for_room_and_one_that_is_cancelled_leaves_its_place() -> None:
    async with doubles(1, seconds=0.05) as (server,):
        servers = ReplicaPool([server.url], max_running=4)
        calls = [asyncio.create_task(servers.post("/chat/completions", BODY)) for _ in range(24)]
        await asyncio.sleep(0.02)
        for call in calls[4:12]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, tuple) for result in done) == 16
        assert server.most == 4
        assert servers.replicas[0].running == 0


async def test_a_conversation_stays_at_its_server_and_new_ones_go_where_least_is_to_do() -> None:
    async with doubles(2, seconds=0.05) as made:
        servers = pooled(made)
        await asyncio.gather(
            *(servers.post("/chat/completions", BODY, session=f"c{n}") for n in range(10))
        )
        counts = [len(double.requests) for double in made]
        assert counts == [5, 5]
        where: dict[int, str] = {}
        for n in range(10):
            for _ in range(2):
                _, sent = await servers.post("/chat/completions", BODY, session=f"c{n}")
                assert where.setdefault(n, sent.replica) == sent.replica


async def test_a_server_that_asks_to_come_back_later_is_asked_later() -> None:
    async with doubles(1) as (server,):

        async def busy(number: int, body: dict[str, Any]) -> web.Response | None:
            error = {"error": {"message": "too many"}}
            return web.json_response(error, status=429) if number < 3 else None

        server.act = busy
        servers = pooled([server])
        _, sent = await servers.post("/chat/completions", BODY, retry_seconds=10)
        assert sent.tries == 3
        assert servers.replicas[0].failures == 0


async def test_a_call_that_breaks_a_living_server_each_time_is_not_sent_for_ever() -> None:
    async with doubles(1) as (server,):

        async def broken(number: int, body: dict[str, Any]) -> web.Response | None:
            return web.json_response({"error": {"message": "kernel"}}, status=500)

        server.act = broken
        with pytest.raises(PolicyUnreachable, match="500: kernel"):
            await pooled([server]).post("/chat/completions", BODY, retry_seconds=60)
        assert len(server.requests) == pool.MAX_CRASHES


async def test_a_server_that_stops_answering_is_left_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 0.5)
    async with doubles(2) as made:

        async def hangs(number: int, body: dict[str, Any]) -> None:
            await asyncio.sleep(30)

        made[0].act = hangs
        servers = pooled(made)
        answers = await asyncio.gather(*(servers.post("/chat/completions", BODY) for _ in range(8)))
        assert {sent.replica for _, sent in answers} == {made[1].url}


async def test_a_wrong_key_is_named() -> None:
    async with doubles(1) as (server,):
        server.key = "right"
        with pytest.raises(PolicyRefused, match="STATESET_POLICY_KEY"):
            await connect(server.url, "policy", api_key="wrong").ainvoke([HumanMessage("hi")])
        await connect(server.url, "policy", api_key="right").ainvoke([HumanMessage("hi")])


async def test_a_stream_that_broke_off_is_not_asked_for_again_and_one_that_never_began_is() -> None:
    async with doubles(1) as (server,):

        async def broken(number: int, body: dict[str, Any]) -> web.StreamResponse:
            if number == 1:
                raise Drop
            response = web.StreamResponse()
            await response.prepare(server.request)
            delta = {"index": 0, "delta": {"content": "hel"}, "finish_reason": None}
            event = {"id": "c", "model": "policy", "choices": [delta]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            raise Drop

        server.act = broken
        policy = connect(server.url, "policy", retry_seconds=10)
        policy = policy.model_copy(update={"disable_streaming": False})
        pieces = list[str]()

        async def read() -> None:
            async for chunk in policy.astream([HumanMessage("hi")]):
                pieces.append(chunk.text)

        with pytest.raises(PolicyUnreachable, match="broke off"):
            await read()
        assert "".join(pieces) == "hel"
        assert len(server.requests) == 2


async def test_an_episode_whose_servers_are_gone_is_failed_and_never_a_score(
    development: list[Scenario],
) -> None:
    async with doubles(1) as (server,):

        async def lost(number: int, body: dict[str, Any]) -> None:
            raise Drop

        server.act = lost
        trace = await play_episode(
            development[0],
            connect(server.url, "policy", retry_seconds=0.2),
            Sampling(version="policy"),
        )
        assert trace.status == "failed"
        assert "tries" in (trace.error or "")


async def test_one_that_hiccups_while_another_is_dead_is_asked_again() -> None:
    async with doubles(2) as made:
        servers = pooled(made)
        await made[1].stop()

        async def hiccup(number: int, body: dict[str, Any]) -> web.Response | None:
            error = {"error": {"message": "once"}}
            return web.json_response(error, status=500) if number == 1 else None

        made[0].act = hiccup
        _, sent = await asyncio.wait_for(
            servers.post("/chat/completions", BODY, retry_seconds=30), 10
        )
        assert sent.replica == made[0].url
        await made[1].start()


async def test_who_waits_for_room_at_a_server_that_dies_is_told() -> None:
    async with doubles(1, seconds=30) as (server,):
        servers = ReplicaPool([server.url], max_running=2)
        calls = [asyncio.create_task(servers.post("/chat/completions", BODY)) for _ in range(8)]
        await asyncio.sleep(0.2)
        await server.stop()
        done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 40)
        assert {type(result) for result in done} == {PolicyUnreachable}
        await server.start()
