"""A recording proxy for apps in any language: OpenAI's protocol in, OpenAI's protocol out, and every call recorded in a store.

    stateset-agents traces proxy --to http://policy:8001/v1 --traces traces.db      # then point the app's base URL at it

Callers can identify themselves in headers: `x-stateset-thread`, `x-stateset-node`, `x-stateset-customer`. Other requests pass
through.
"""

import asyncio
import json
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web

from stateset_agents.policy.completion import (
    Completion,
    completion_of,
    join_completions,
    join_message,
)
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.conversion import openai_message, sampling
from stateset_agents.traces.sink import TraceSink

THREAD, NODE, CUSTOMER = "x-stateset-thread", "x-stateset-node", "x-stateset-customer"
_HOP = {
    "host",
    "content-length",
    "connection",
    "transfer-encoding",
    "content-encoding",
    "accept-encoding",
    "keep-alive",
}
"""Hop-by-hop headers, which are not forwarded."""
MAX_BYTES = 64 * 2**20
"""Of a request."""


class Proxy:
    """Forwards calls to `to` (ends in /v1) and records them. With `exact` it asks vLLM, or the embedded engine, for token ids,
    which the client gets only if it asked for them."""

    def __init__(self, to: str, sink: TraceSink, *, exact: bool) -> None:
        self.to = to.rstrip("/")
        self.sink = sink
        self.exact = exact

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BYTES)
        app.cleanup_ctx.append(self._connected)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_route("*", "/v1/{rest:.*}", self._pass)
        return app

    async def _connected(self, app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        # Shorter than the server keeps it: a request that meets the server's closing is lost.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        self.session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        yield
        await self.session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        url = f"{self.to}/{request.match_info['rest']}"
        body = await request.read()
        try:
            async with self.session.request(
                request.method,
                url,
                params=request.query,
                data=body,
                headers=_passed(request.headers),
            ) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), headers=_passed(answer.headers)
                )
        except aiohttp.ClientError as error:
            return self._unreachable(error)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return _refusal(
                400, "Expected a JSON body with a list of messages, found none.", "invalid_body"
            )
        sent = {**body, "logprobs": True, "return_token_ids": True} if self.exact else body
        recorded = _ProxiedRequest(self.sink, request.headers, body)
        hides = (
            _Hides(ids=not body.get("return_token_ids"), logprobs=not body.get("logprobs"))
            if self.exact
            else None
        )
        try:
            async with self.session.post(
                f"{self.to}/chat/completions", json=sent, headers=_passed(request.headers)
            ) as answer:
                headers = _passed(answer.headers)
                if answer.status == 200 and answer.content_type == "text/event-stream":
                    return await self._streamed(request, answer, headers, recorded, hides)
                data = await answer.read()
                if answer.status != 200:
                    recorded.failed(f"{answer.status}: {data[:300].decode(errors='replace')}")
                    return web.Response(status=answer.status, body=data, headers=headers)
                completion = _parsed(data)
                if completion is None:
                    recorded.failed(f"no chat completion: {data[:300].decode(errors='replace')}")
                    return web.Response(body=data, headers=headers)
                recorded.answered(
                    [
                        (completion_of(completion, n), choice["message"])
                        for n, choice in enumerate(completion["choices"])
                    ]
                )
                if hides is not None:
                    hides.hide(completion)
                    data = json.dumps(completion).encode()
                return web.Response(body=data, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            recorded.failed(f"{type(error).__name__}: {error}")
            return self._unreachable(error)
        except asyncio.CancelledError:
            recorded.failed("the client left")
            raise

    async def _streamed(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str], recorded: "_ProxiedRequest",
        hides: "_Hides | None",
    ) -> web.StreamResponse:  # fmt: skip
        out = web.StreamResponse(headers=headers)
        await out.prepare(request)
        choices = _Choices(int(recorded.body.get("n") or 1))
        try:
            async for line in _lines(answer.content):
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    choices.add(chunk)
                    if choices.whole:  # a client may leave at its end, before we know of it
                        recorded.answered(choices.answers())
                    if hides is not None:
                        line = f"data: {json.dumps(hides.hidden(chunk))}\n".encode()
                await out.write(line)
        except asyncio.CancelledError:
            recorded.failed("the client left")
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            recorded.failed(f"the stream broke off: {type(error).__name__}")
            if request.transport is not None:  # an end that looks like one would be a lie
                request.transport.abort()
            return out
        recorded.failed("the stream ended without a finish reason")
        await out.write_eof()
        return out

    def _unreachable(self, error: Exception) -> web.Response:
        message = f"Expected a server at {self.to}, found {type(error).__name__}: {error}"
        return _refusal(502, message, "upstream_unreachable")


class _Choices:
    """The choices of a streamed answer, joined."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._chunks: dict[int, list[dict[str, Any]]] = {}
        self._ended: set[int] = set()

    def add(self, chunk: dict[str, Any]) -> None:
        for choice in chunk.get("choices") or []:
            index = int(choice.get("index") or 0)
            chunks = self._chunks.setdefault(index, [])
            chunks.append({**chunk, "choices": [{**choice, "index": 0}]})
            if choice.get("finish_reason"):
                self._ended.add(index)

    @property
    def whole(self) -> bool:
        return len(self._ended) >= self._count

    def answers(self) -> "Answers":
        return [
            (join_completions(chunks), join_message(chunks))
            for _, chunks in sorted(self._chunks.items())
        ]


Answers = list[tuple[Completion, dict[str, Any]]]
"""The tokens and the message of each choice."""


class _ProxiedRequest:
    """One request: a run on the caller's thread. Errors of recording are logged and never reach the client."""

    def __init__(self, sink: TraceSink, headers: Any, body: dict[str, Any]) -> None:
        self.sink, self.body = sink, body
        self.is_recorded = False
        self.node = headers.get(NODE, "")
        self.clock = time.perf_counter()
        self.trace = Trace(
            id=uuid.uuid4().hex, thread=headers.get(THREAD, ""), customer=headers.get(CUSTOMER, ""), graph="proxy",
            started=time.time(),
        )  # fmt: skip

    def answered(self, answers: Answers) -> None:
        """Record the answer; only the first outcome of a request counts."""
        self._keep(answers, None)

    def failed(self, error: str) -> None:
        self._keep([], error)

    def _keep(self, answers: Answers, error: str | None) -> None:
        if self.is_recorded:
            return
        self.is_recorded = True
        try:
            self._hand_over(answers, error)
        except Exception:
            logging.getLogger(__name__).exception("a call was not recorded")

    def _hand_over(self, answers: Answers, error: str | None) -> None:
        seconds = time.perf_counter() - self.clock
        make = partial(_call, self.node, self.body, seconds)
        self.sink.begin(self.trace)
        for number, (completion, message) in enumerate(answers):
            self.sink.add_call(
                self.trace.id, number, partial(make, number, completion, message, None)
            )
        if error is not None:
            self.sink.add_call(self.trace.id, 0, partial(make, 0, None, None, error))
        first = [_compact(message) for _, message in answers[:1]]
        update = {
            "status": "failed" if error else "completed",
            "error": error,
            "messages": (*self.body["messages"], *first),
            "seconds": seconds,
        }
        self.sink.end(self.trace.id, partial(self.trace.model_copy, update=update))


class _Hides:
    """Removes fields from an answer that the client did not ask for."""

    def __init__(self, *, ids: bool, logprobs: bool) -> None:
        self.ids, self.logprobs = ids, logprobs

    def hide(self, answer: dict[str, Any]) -> None:
        if self.ids:
            answer.pop("prompt_token_ids", None)
        for choice in answer.get("choices") or []:
            if self.ids:
                choice.pop("token_ids", None)
            if self.logprobs and "logprobs" in choice:
                choice["logprobs"] = None

    def hidden(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """A copy: the original is still to be recorded."""
        copy = {**chunk, "choices": [dict(choice) for choice in chunk.get("choices") or []]}
        self.hide(copy)
        return copy


def _call(
    node: str, body: dict[str, Any], seconds: float, number: int, completion: Completion | None,
    message: dict[str, Any] | None, error: str | None,
) -> ModelCall:  # fmt: skip
    whole = completion is not None and len(completion.logprobs) == len(completion.sampled_ids)
    response = completion.response_id if completion else uuid.uuid4().hex
    return ModelCall(
        response_id=f"{response}/{number}" if number else response,
        node=node,
        turn=sum(m.get("role") == "user" for m in body["messages"] if isinstance(m, dict)),
        version=completion.version if completion else str(body.get("model") or ""),
        messages=tuple(openai_message(message) for message in body["messages"]),
        tools=tuple(body.get("tools") or ()),
        answer=None if message is None else _compact(message),
        prompt_ids=completion.prompt_ids if completion else (),
        sampled_ids=completion.sampled_ids if completion else (),
        logprobs=completion.logprobs if completion and whole else (),
        finish_reason=completion.finish_reason if completion else "",
        seconds=seconds,
        error=error,
        **sampling(body),
    )


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    good = isinstance(choices, list) and choices and all("message" in c for c in choices)
    return answer if good and "id" in answer else None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines with their ends, of any length: a chunk with a prompt's ids is long."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _compact(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its empty fields."""
    fields = {name: value for name, value in message.items() if value not in (None, [], "")}
    return {"content": "", **fields}


def _passed(headers: Any) -> dict[str, str]:
    ours = (THREAD, NODE, CUSTOMER)
    return {k: v for k, v in headers.items() if k.lower() not in _HOP and k.lower() not in ours}


def _refusal(status: int, message: str, code: str) -> web.Response:
    error = {
        "message": message,
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None,
        "code": code,
    }
    return web.json_response({"error": error}, status=status)


async def serve(proxy: Proxy, *, host: str, port: int) -> None:
    """Serve until the process is told to end (SIGINT or SIGTERM) or the task is cancelled."""
    ends = asyncio.Event()
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, ends.set)
    runner = web.AppRunner(
        proxy.app(), handler_cancellation=True, access_log=None, shutdown_timeout=5
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await ends.wait()
    finally:
        await runner.cleanup()
