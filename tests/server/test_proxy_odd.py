"""Servers that nearly speak the protocol: the client gets their very bytes, and the record is the best there is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from stateset_agents.server.proxy import Proxy
from stateset_agents.trace import Trace
from stateset_agents.traces.store import TraceStore
from tests.servers import running

HELLO = [{"role": "user", "content": "Hello"}]


def chunk(delta: Any, reason: Any = None, **fields: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, **fields}
    return json.dumps({"id": "c1", "model": "m", "choices": [choice]})


def call(name: str = "", arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {"name": name, **({} if arguments is None else {"arguments": arguments})}
    return {"tool_calls": [{"function": function, **fields}]}


STOP = chunk({}, "stop")
TOOLS = chunk({}, "tool_calls")
ODD: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a list as content": (
        [chunk({"content": [{"type": "text", "text": "Hel"}]}), chunk({"content": "lo"}), STOP],
        {"content": "Hello"},
    ),
    "objects as arguments": (
        [chunk(call("f", {"a": 1}, index=0, id="x")), TOOLS],
        {"tool_calls": [("x", "f", '{"a": 1}')]},
    ),
    "no id": (['{"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}'], {"content": "Hi"}),
    "the name again in each piece": (
        [chunk(call("find", '{"a"', index=0, id="x")), chunk(call("find", ": 1}", index=0, id="x")), TOOLS],
        {"tool_calls": [("x", "find", '{"a": 1}')]},
    ),
    "a name in two pieces": (
        [chunk(call("fi", "", index=0, id="x")), chunk(call("nd", "{}", index=0)), TOOLS],
        {"tool_calls": [("x", "find", "{}")]},
    ),
    "several calls at one index": (
        [chunk(call("f", "{}", index=0, id="x")), chunk(call("g", "{}", index=0, id="y")), TOOLS],
        {"tool_calls": [("x", "f", "{}"), ("y", "g", "{}")]},
    ),
    "a call of the old form": (
        [chunk({"function_call": {"name": "f", "arguments": "{"}}), chunk({"function_call": {"arguments": "}"}}), STOP],
        {"tool_calls": [("", "f", "{}")]},
    ),
    "no finish reason, but an end": ([chunk({"content": "Hi"}), "[DONE]"], {"content": "Hi"}),
    "no logprob in an entry": (
        [chunk({"content": "Hi"}, "stop", token_ids=[5], logprobs={"content": [{"token": "Hi"}]})],
        {"content": "Hi", "exactness": "text"},
    ),
    "a line that is no JSON": (
        [chunk({"content": "Hel"}), '{"choices": [', chunk({"content": "lo"}), STOP],
        {"content": "Hello", "lost": 1},
    ),
    "an error in the stream": (
        [chunk({"content": "Hel"}), '{"error": {"message": "out of memory"}}'],
        {"content": "Hel", "status": "failed", "error": "out of memory"},
    ),
    "an end too soon": (
        [chunk({"content": "Hel"})],
        {"content": "Hel", "status": "failed", "error": "the stream ended without a finish reason"},
    ),
    "reasoning and sound": (
        [chunk({"reasoning_content": "hm", "content": "Hi", "audio": {"transcript": "Hi"}}, "stop")],
        {"content": "Hi", "reasoning_content": "hm", "audio": {"transcript": "Hi"}},
    ),
    "choices that are none": ([json.dumps({"id": "c1", "choices": [7, None]}), chunk({"content": "Hi"}), STOP], {"content": "Hi"}),
}  # fmt: skip


class Upstream:
    """Answers with the bytes that it is given, and keeps what it was asked."""

    def __init__(self) -> None:
        self.data = b""
        self.kind = "text/event-stream"
        self.paths: list[str] = []
        self.headers: list[Any] = []
        self.piece = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.rel_url.raw_path)
        self.headers.append(request.headers)
        await request.read()
        out = web.StreamResponse(headers={"Content-Type": self.kind, "x-odd": "ja"})
        await out.prepare(request)
        half = len(self.data) // 2
        await out.write(self.data[:half])
        if self.piece.is_set():
            await asyncio.sleep(0.2)
        await out.write(self.data[half:])
        return out


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    server, app = Upstream(), web.Application()
    app.router.add_route("*", "/{rest:.*}", server.answer)
    async with running(app) as url:
        yield server, url


@asynccontextmanager
async def proxied(
    url: str, folder: Path, **options: Any
) -> AsyncIterator[tuple[str, aiohttp.ClientSession, TraceStore]]:
    with TraceStore(folder / "traces.db") as store:
        proxy = Proxy(url, store, **{"exact": False, **options})
        async with running(proxy.app()) as place, aiohttp.ClientSession() as session:
            yield place, session, store


def kept(store: TraceStore) -> list[Trace]:
    store.flush()
    return list(store.traces())


async def passed(place: str, session: aiohttp.ClientSession, path: str, body: Any) -> bytes:
    async with session.post(f"{place}{path}", json=body) as answer:
        return await answer.read()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("ending", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("start", ["data: ", "data:"])
@pytest.mark.parametrize("odd", ODD)
async def test_a_stream_is_passed_on_and_put_together(
    odd: str, start: str, ending: str, exact: bool, upstream: tuple[Upstream, str], tmp_path: Path
) -> None:
    server, url = upstream
    lines, expected = ODD[odd]
    server.data = "".join(f"{start}{line}{ending}" for line in lines).encode()
    async with proxied(url, tmp_path, exact=exact) as (place, session, store):
        body = {"model": "m", "messages": HELLO, "stream": True, "n": "one"}
        arrived = await passed(place, session, "/chat/completions", body)
        (trace,) = kept(store)
    if exact:
        assert b"token_ids" not in arrived
    else:
        assert arrived == server.data
    (recorded,) = trace.model_calls
    assert recorded.answer is not None
    assert trace.status == expected.get("status", "completed")
    assert trace.lost == expected.get("lost", 0)
    assert recorded.error == expected.get("error")
    calls = [
        (c["id"], c["function"]["name"], c["function"]["arguments"])
        for c in recorded.answer.get("tool_calls", [])
    ]
    assert calls == expected.get("tool_calls", [])
    for name in ("content", "reasoning_content", "audio"):
        if name in expected:
            assert recorded.answer[name] == expected[name]
    assert trace.exactness == "text"


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"[]", b'{"choices": null}', b'{"choices": [{"message": null}]}', b'{"id": 5, "choices": [{}]}'],
)  # fmt: skip
async def test_a_whole_answer_of_any_form_is_passed_on(
    data: bytes, upstream: tuple[Upstream, str], tmp_path: Path
) -> None:
    server, url = upstream
    server.data, server.kind = data, "application/json"
    for exact in (False, True):
        async with proxied(url, tmp_path, exact=exact) as (place, session, store):
            body = {"model": "m", "messages": HELLO}
            arrived = await passed(place, session, "/chat/completions", body)
            assert arrived == data or json.loads(arrived) == json.loads(data)
            assert len(kept(store)) == 1 + exact


@pytest.mark.parametrize(
    ("path", "body", "lines", "answer", "question"),
    [
        (
            "/completions",
            {"model": "m", "prompt": "Once", "stream": True},
            [
                json.dumps({"id": "t1", "choices": [{"text": " upon"}]}),
                json.dumps({"id": "t1", "choices": [{"text": " a", "finish_reason": "stop"}]}),
            ],
            " upon a",
            "Once",
        ),
        (
            "/responses",
            {"model": "m", "input": "Hi", "instructions": "Be kind.", "stream": True},
            [
                json.dumps({"type": "response.output_text.delta", "delta": "He"}),
                json.dumps(
                    {
                        "type": "response.completed",
                        "response": {
                            "id": "r1",
                            "status": "completed",
                            "output": [
                                {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
                            ],
                        },
                    }
                ),
            ],
            "Hello",
            "Hi",
        ),
    ],
)  # fmt: skip
async def test_responses_and_completions_arrive_piece_by_piece_and_are_recorded(
    path: str, body: Any, lines: list[str], answer: str, question: str,
    upstream: tuple[Upstream, str], tmp_path: Path,
) -> None:  # fmt: skip
    server, url = upstream
    server.data = "".join(f"data: {line}\n\n" for line in lines).encode()
    server.piece.set()
    async with proxied(url, tmp_path) as (place, session, store):
        async with session.post(f"{place}{path}", json=body) as response:
            first = await response.content.readany()
            assert 0 < len(first) < len(server.data)
            assert first + await response.content.read() == server.data
        (trace,) = kept(store)
    (recorded,) = trace.model_calls
    assert trace.status == "completed"
    assert (recorded.answer or {})["content"] == answer
    assert recorded.messages[-1]["content"] == question


async def test_what_is_not_recorded_is_passed_on_and_said(
    upstream: tuple[Upstream, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, url = upstream
    server.data, server.kind = b"\x00\xff" * 1000, "audio/mpeg"
    async with proxied(url, tmp_path) as (place, session, store):
        assert await passed(place, session, "/audio/speech", {"input": "Hi"}) == server.data
        assert kept(store) == []
    assert "POST audio/speech passes through and is not recorded" in caplog.text


@pytest.mark.parametrize(
    "path",
    ["/v1/..%2fctl", "/v1/%2e%2e/ctl", "/v1/..%252fctl", "/v1/models/..%5c..%5cctl", "/v1/x/%2e%2e%2f%2e%2e%2fctl"],
)  # fmt: skip
async def test_nobody_leaves_the_upstreams_v1(
    path: str, upstream: tuple[Upstream, str], tmp_path: Path
) -> None:
    server, url = upstream
    async with proxied(url, tmp_path) as (place, session, _):
        target = URL(place.removesuffix("/v1") + path, encoded=True)
        async with session.get(target) as answer:
            assert answer.status == 404
        async with session.get(f"{place}/models/a%2Fb?x=1%262") as answer:
            assert answer.status == 200
    assert server.paths == ["/v1/models/a/b"]


async def test_beyond_a_key_nobody_gets_through(
    upstream: tuple[Upstream, str], tmp_path: Path
) -> None:
    server, url = upstream
    async with proxied(url, tmp_path, key="ours") as (place, session, _):
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer theirs"}, 401),
            ({"Authorization": "Bearer theirs", "x-stateset-key": "ours"}, 200),
            ({"Authorization": "Bearer ours"}, 200),
        ):
            async with session.get(f"{place}/models", headers=headers) as answer:
                assert answer.status == status
    both, alone = server.headers
    assert both["authorization"] == "Bearer theirs"
    assert "authorization" not in alone
    assert "x-stateset-key" not in both


async def test_headers_may_hold_any_bytes(upstream: tuple[Upstream, str], tmp_path: Path) -> None:
    server, url = upstream
    server.data = f"data: {chunk({'content': 'Hi'}, 'stop')}\n\n".encode()
    async with proxied(url, tmp_path) as (place, _, store):
        target = URL(place)
        body = json.dumps({"model": "m", "messages": HELLO, "stream": True}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"x-name: M\xfcller\r\nx-stateset-customer: M\xfcller\r\nconnection: close\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(head + body)
        answer = await reader.read()
        writer.close()
        (trace,) = kept(store)
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.headers[0]["x-name"] == "Müller"
    assert trace.customer == "Müller"
