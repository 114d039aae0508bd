"""The endpoint when its policy fails, its clients are many, long-winded or silent, and its database cuts the line."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from stateset_agents.errors import PolicyRefused, PolicyUnreachable
from stateset_agents.server import listening
from stateset_agents.server.conversations import Conversations, kept_in
from stateset_agents.server.supervisor import free_port
from stateset_agents.tools.shop.generate import generate
from tests.server.test_app import Silent, app_with
from tests.server.test_endpoint_core import HI, endpoint, message, turn
from tests.servers import Running


class Failing(Silent):
    """Answers with errors, or with what no customer should read."""

    answers: list[Any]

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        answer = self.answers.pop(0) if self.answers else "Which order is it?"
        if isinstance(answer, Exception):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer))])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (
            PolicyRefused("Expected a key, found none: secret-key", status=401),
            502,
            "policy_refused",
        ),
        (PolicyUnreachable("Expected an answer, found a closed port"), 503, "policy_unreachable"),
        (RuntimeError("secret-key"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_the_policy_are_told_apart_logged_and_leave_the_connection(
    error: Exception, status: int, code: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shop = generate(1, "train").clone()
    async with endpoint(Failing(answers=[error]), shop) as client:
        answer = await turn(client, HI, stream=stream)
        if stream:
            assert f'"code": "{code}"' in answer.text
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "secret-key" not in answer.text
        assert str(error) in caplog.text
        assert message(await turn(client, HI))["content"] == "Which order is it?"


@pytest.mark.parametrize(
    "raw",
    ['<tool_call>{"name": "get_order", "arguments": {', "[TOOL_CALLS][{]", "<function=get_order>"],
)
async def test_nobody_reads_a_broken_tool_call(raw: str) -> None:
    shop = generate(1, "train").clone()
    async with endpoint(Failing(answers=[raw]), shop, guard=True) as client:
        assert message(await turn(client, HI))["content"] == "Which order is it?"
    async with endpoint(Failing(answers=[raw] * 20), shop, guard=True) as client:
        assert "colleague" in message(await turn(client, HI))["content"]


async def test_failed_turns_leave_nothing_behind() -> None:
    kept, shop = Conversations(), generate(1, "train").clone()
    policy = Failing(answers=[RuntimeError("no")] * 20)
    async with endpoint(policy, shop, kept) as client:
        for _ in range(20):
            await turn(client, HI)
    assert [item async for item in kept.saver.alist(None)] == []


async def test_a_long_text_is_refused_and_does_not_hold_the_others() -> None:
    shop = generate(1, "train").clone()
    async with endpoint(Failing(answers=[]), shop, guard=True) as client:
        huge = await turn(client, [{"role": "user", "content": "x 1 " * 250_000}])
        assert huge.status_code == 400
        long = asyncio.create_task(
            turn(client, [{"role": "user", "content": "order 12 may " * 15_000}])
        )
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        await client.get("/models")
        assert message(await long)["content"]
        assert time.perf_counter() - began < 30


async def test_memory_is_bounded_by_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from stateset_agents.server import conversations

    monkeypatch.setattr(conversations, "MAX_CHARACTERS", 50_000)
    kept, shop = Conversations(), generate(1, "train").clone()
    async with endpoint(Failing(answers=[]), shop, kept) as client:
        for number in range(8):
            await turn(client, [{"role": "user", "content": f"{number} " * 10_000}])
    rows = await kept.tables.run("SELECT size FROM stateset_conversation")
    assert sum(row[0] for row in rows) <= 50_000
    assert rows


async def test_sixteen_clients_on_one_file_are_all_answered(tmp_path: Path) -> None:
    shop = generate(1, "train").clone()
    async with (
        kept_in(str(tmp_path / "state.db")) as kept,
        endpoint(Failing(answers=[]), shop, kept) as client,
    ):
        ends = time.monotonic() + 60 * float(os.environ.get("STATESET_TEST_MINUTES", "0.1"))

        async def talk(name: str) -> list[int]:
            codes = []
            while time.monotonic() < ends:
                answer = await turn(client, HI, headers={"x-thread-id": name})
                codes.append(answer.status_code)
            return codes

        codes = [
            code
            for own in await asyncio.gather(*(talk(f"c{n}") for n in range(16)))
            for code in own
        ]
    assert set(codes) == {200}
    assert len(codes) > 50


async def test_connections_that_postgresql_cut_are_replaced(postgres_url: str) -> None:
    import psycopg

    shop = generate(1, "train").clone()
    async with kept_in(postgres_url) as kept, endpoint(Failing(answers=[]), shop, kept) as client:
        assert (await turn(client, HI)).status_code == 200
        with psycopg.connect(postgres_url, autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND datname = current_database()"
            )
        answers = await asyncio.gather(*(turn(client, HI) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}


async def test_half_open_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEAD_SECONDS", 1.0)
    from stateset_agents.server import http as server_http

    monkeypatch.setattr(server_http, "BODY_SECONDS", 1.0)
    heads = (
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    )
    async with Running(app_with(Failing(answers=[]), generate(1, "train").clone())) as url:
        port = int(url.split(":")[2].split("/")[0])

        async def silent(head: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            arrived = await asyncio.wait_for(reader.read(), 15)
            writer.close()
            return arrived

        ended = await asyncio.gather(*(silent(heads[n % 3]) for n in range(1000)))
        assert all(not answer or b"408" in answer for answer in ended)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await turn(client, HI)).status_code == 200


def test_a_server_that_is_told_to_end_ends_while_its_policy_hangs(tmp_path: Path) -> None:
    port = free_port()
    code = f"""
import uvicorn
from stateset_agents.server import listening
from stateset_agents.tools.shop.generate import generate
from tests.server.test_app import Silent, app_with
listening.GRACE = 1
uvicorn.Server(listening.config(app_with(Silent(), generate(1, "train").clone()), "127.0.0.1", {port})).run()
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json={"model": "service", "messages": HI, "stream": True}, timeout=1,
            )  # fmt: skip
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) is not None
    finally:
        process.kill()


async def test_the_clients_settings_and_instructions_reach_the_policy() -> None:
    seen: list[Any] = []

    class Seeing(Silent):
        async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
            seen.append((messages[0].text, kwargs))
            return ChatResult(generations=[ChatGeneration(message=AIMessage("Hello."))])

    async with endpoint(Seeing(), generate(1, "train").clone()) as client:
        messages = [{"role": "system", "content": "Answer in rhymes."}, *HI]
        answer = await turn(client, messages, temperature=0.3, max_completion_tokens=50, seed=7)
        assert message(answer)["content"] == "Hello."
    ((prompt, options),) = seen
    assert "Answer in rhymes." in prompt
    assert (options["temperature"], options["max_tokens"], options["seed"]) == (0.3, 50, 7)
