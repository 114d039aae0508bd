"""The recording proxy: the client sees what the server says, and the store has the call, streamed or not."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from stateset_agents.policy.chat_model import connect
from stateset_agents.server.proxy import Proxy
from stateset_agents.server.supervisor import free_port
from stateset_agents.trace import Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.store import TraceStore
from tests.servers import running

QUESTION: list[Any] = [{"role": "user", "content": "Where is my order?"}]
HEADERS = {"x-stateset-thread": "t9", "x-stateset-node": "answer", "x-stateset-customer": "C3"}


@asynccontextmanager
async def proxied(
    to: str, store: TraceStore, *, exact: bool = True
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running(Proxy(to, store, exact=exact).app()) as url,
        openai.AsyncOpenAI(
            base_url=url, api_key="k", max_retries=0, default_headers=HEADERS
        ) as client,
    ):
        yield client


def kept(store: TraceStore) -> list[Trace]:
    store.flush()
    return list(store.traces())


async def test_a_call_is_answered_as_ever_and_recorded_exactly(engine: str, tmp_path: Path) -> None:
    options: Any = {
        "model": "policy",
        "messages": QUESTION,
        "max_tokens": 12,
        "seed": 4,
        "temperature": 0.7,
    }
    async with openai.AsyncOpenAI(base_url=engine, api_key="k") as client:
        direct = await client.chat.completions.create(**options)
    with TraceStore(tmp_path / "traces.db") as store:
        async with proxied(engine, store) as client:
            through = await client.chat.completions.create(**options)
            stream = await client.chat.completions.create(**options, stream=True)
            pieces = [chunk async for chunk in stream]
            assert [model.id async for model in client.models.list()] == ["policy"]
        whole, streamed = kept(store)
    assert through.choices == direct.choices
    assert "token_ids" not in through.model_dump_json()
    assert "token_ids" not in "".join(piece.model_dump_json() for piece in pieces)
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == (direct.choices[0].message.content or "")
    for trace in (whole, streamed):
        assert (trace.exactness, trace.thread, trace.customer, trace.status) == (
            "exact",
            "t9",
            "C3",
            "completed",
        )
        (call,) = trace.model_calls
        assert (call.node, call.version, call.temperature) == ("answer", "policy", 0.7)
        assert call.messages == tuple(QUESTION)
    assert whole.model_calls[0].sampled_ids == streamed.model_calls[0].sampled_ids
    assert whole.model_calls[0].answer == streamed.model_calls[0].answer


async def test_what_the_client_asks_for_it_gets(engine: str, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        async with proxied(engine, store) as client:
            answer = await client.chat.completions.create(
                model="policy", messages=QUESTION, max_tokens=4, logprobs=True, extra_body={"return_token_ids": True}
            )  # fmt: skip
    assert answer.choices[0].logprobs is not None
    assert (answer.model_extra or {})["prompt_token_ids"]


async def scripted(request: web.Request) -> web.StreamResponse:
    """A server that is no vLLM: tool calls in pieces, errors, streams that break off."""
    body = await request.json()
    kind = body["messages"][-1]["content"]
    if kind == "busy":
        return web.json_response({"error": {"message": "slow down", "code": "rate"}}, status=429)
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await out.prepare(request)

    async def send(delta: dict[str, Any], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        await out.write(
            f"data: {json.dumps({'id': 'c1', 'model': 'm', 'choices': [choice]})}\n\n".encode()
        )

    await send({"role": "assistant", "content": ""})
    if kind == "breaks":
        assert request.transport is not None
        request.transport.close()
        return out
    if kind == "slow":
        await asyncio.sleep(30)
    if kind == "two":
        for index, text, reason in (
            (0, "a", None),
            (1, "x", None),
            (0, "b", "stop"),
            (1, "y", "length"),
        ):
            ids = {"prompt_token_ids": [1, 2, 3]} if reason is None else {}
            choice = {
                "index": index, "delta": {"content": text, "reasoning_content": f"r{text}"}, "finish_reason": reason,
                "token_ids": [ord(text)], "logprobs": {"content": [{"logprob": -0.5}]},
            }  # fmt: skip
            chunk = {"id": "c1", "model": "m", "choices": [choice], **ids}
            await out.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await out.write(b"data: [DONE]\n\n")
        return out
    if kind == "long":
        await send({"content": "x" * 3_000_000}, "stop")
        await send({})
        await asyncio.sleep(30)  # its client does not wait for that
    call = {"index": 0, "id": "x1", "function": {"name": "stock", "arguments": '{"sku":'}}
    await send({"tool_calls": [call]})
    await send({"tool_calls": [{"index": 0, "function": {"arguments": ' "P1"}'}}]})
    await send({}, "tool_calls")
    await out.write(b": a comment\n\ndata: [DONE]\n\n")
    return out


@pytest.fixture
async def other() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", scripted)
    async with running(app) as url:
        yield url


async def test_streamed_tool_calls_of_any_server_are_put_together(
    other: str, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        async with proxied(other, store, exact=False) as client:
            stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
            assert [chunk.choices[0].finish_reason async for chunk in stream][-1] == "tool_calls"
        (trace,) = kept(store)
    assert trace.exactness == "text"
    (call,) = trace.model_calls
    assert call.answer is not None
    assert call.answer["tool_calls"][0]["function"] == {
        "name": "stock",
        "arguments": '{"sku": "P1"}',
    }


async def test_what_fails_is_passed_on_and_typed(other: str, tmp_path: Path) -> None:
    def body_of(kind: str) -> Any:
        return {"model": "m", "messages": [{"role": "user", "content": kind}]}

    with TraceStore(tmp_path / "traces.db") as store:
        async with proxied(other, store, exact=False) as client:
            with pytest.raises(openai.RateLimitError, match="slow down"):
                await client.chat.completions.create(**body_of("busy"))
        async with (
            running(Proxy(other, store, exact=False).app()) as url,
            aiohttp.ClientSession() as session,
        ):
            place = f"{url}/chat/completions"
            with pytest.raises(aiohttp.ClientError):
                async with session.post(
                    place, json={**body_of("breaks"), "stream": True}
                ) as answer:
                    await answer.read()
            async with session.post(place, json={**body_of("slow"), "stream": True}) as answer:
                await answer.content.readline()
            await asyncio.sleep(0.3)  # the client has left
        async with proxied("http://127.0.0.1:9/v1", store) as client:
            with pytest.raises(openai.InternalServerError, match=r"127\.0\.0\.1:9"):
                await client.chat.completions.create(**body_of("x"))
        traces = kept(store)
    assert [trace.status for trace in traces] == ["failed"] * 4
    assert all(call.error for trace in traces for call in trace.model_calls)


def talk(kind: str) -> list[Any]:
    return [{"role": "user", "content": kind}]


async def test_two_choices_of_one_request_are_two_calls_each_exact(
    other: str, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        async with proxied(other, store) as client:
            async for _ in await client.chat.completions.create(
                model="m", messages=talk("two"), stream=True, n=2
            ):
                pass
        (trace,) = kept(store)
    assert trace.exactness == "exact"
    assert [
        (c.response_id, c.prompt_ids, c.sampled_ids, c.finish_reason) for c in trace.model_calls
    ] == [
        ("c1", (1, 2, 3), (ord("a"), ord("b")), "stop"),
        ("c1/1", (1, 2, 3), (ord("x"), ord("y")), "length"),
    ]
    answer = trace.model_calls[0].answer
    assert answer is not None
    assert (answer["content"], answer["reasoning_content"]) == ("ab", "rarb")


async def test_a_client_that_leaves_at_the_end_had_its_answer(other: str, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        async with (
            running(Proxy(other, store, exact=True).app()) as url,
            aiohttp.ClientSession(read_bufsize=2**24) as session,
        ):
            body = {"model": "m", "messages": talk("long"), "stream": True}
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                got = 0
                while got < 3_000_000:
                    got += len(await answer.content.readany())
            await asyncio.sleep(0.3)
        (trace,) = kept(store)
    assert trace.status == "completed"
    assert len(trace.messages[-1]["content"]) == 3_000_000


async def test_what_cannot_be_recorded_is_answered_all_the_same(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TraceStore(tmp_path / "traces.db")
    store.close()
    async with proxied(engine, store) as client:
        answer = await client.chat.completions.create(
            model="policy", messages=QUESTION, max_tokens=2
        )
    assert answer.choices
    assert "was not recorded" in caplog.text


async def test_a_policy_of_two_choices_in_one_stream_is_text(other: str, tmp_path: Path) -> None:
    policy = connect(other, "m").model_copy(update={"disable_streaming": False, "n": 2})
    with TraceStore(tmp_path / "traces.db") as store:
        model = record(policy, store)
        async for _ in model.astream("two"):
            pass
        (trace,) = kept(store)
    assert trace.exactness == "text"


@pytest.mark.parametrize("chunk", [signal.SIGINT, signal.SIGTERM])
def test_the_command_records_for_an_app_of_any_language(
    engine: str, tmp_path: Path, chunk: signal.Signals
) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "stateset_agents", "traces", "proxy", "--to", engine, "--exact", "--port", str(port),
         "--traces", str(tmp_path / "traces.db")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert "records into" in process.stdout.readline()
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k") as client:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                client.chat.completions.create(model="policy", messages=QUESTION, max_tokens=4)
                break
            except openai.APIConnectionError:
                time.sleep(0.1)
    process.send_signal(chunk)
    try:
        process.communicate(timeout=20)
    finally:
        process.kill()
    with TraceStore(tmp_path / "traces.db", create=False) as store:
        (trace,) = store.traces()
    assert trace.exactness == "exact"
