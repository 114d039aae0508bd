"""A recording proxy for apps in any language: OpenAI's protocol in, OpenAI's protocol out, and every call recorded in a store.

    stateset-agents traces proxy --to http://policy:8001/v1 --traces traces.db      # then point the app's base URL at it

Bytes pass first, piece by piece; the record is made beside. Chat completions, completions and responses are recorded; other
requests pass through. Callers can identify themselves in headers: `x-stateset-thread`, `x-stateset-node`, `x-stateset-customer`.
"""

import asyncio
import hmac
import json
import logging
import signal
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from stateset_agents.policy.completion import Completion
from stateset_agents.server.proxy_answers import Reading, messages_of, read
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.conversion import openai_message, sampling
from stateset_agents.traces.sink import TraceSink

THREAD, NODE, CUSTOMER = "x-stateset-thread", "x-stateset-node", "x-stateset-customer"
KEY = "x-stateset-key"
"""The proxy's own key, for clients whose `Authorization` is the upstream server's."""
RECORDED = ("chat/completions", "completions", "responses")
_HOP = {
    "host",
    "content-length",
    "connection",
    "transfer-encoding",
    "content-encoding",
    "accept-encoding",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "proxy-connection",
}
"""Hop-by-hop headers, which are not forwarded."""
MAX_BYTES = 64 * 2**20
"""Of a request, and of an answer's record."""


class Proxy:
    """Forwards calls to `to` (ends in /v1) and records them. With `exact` it asks vLLM, or the embedded engine, for token ids,
    which the client gets only if it asked for them. With `key`, clients have to send it: in `x-stateset-key`, or as their bearer
    key, which is then not passed on."""

    def __init__(self, to: str, sink: TraceSink, *, exact: bool, key: str = "") -> None:
        self.to = to.rstrip("/")
        self.sink = sink
        self.exact = exact
        self.key = key
        self._announced: set[str] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BYTES)
        app.cleanup_ctx.append(self._connected)
        app.router.add_route("*", "/v1/{rest:.*}", self._forward)
        return app

    async def _connected(self, app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        # Shorter than the server keeps it: a request that meets the server's closing is lost.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        self.session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        yield
        await self.session.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        kind = "/".join(_segments(request) or ())
        raw = await request.read()
        headers = _passed(request.headers)
        if self.key and _bearer(request) == self.key:
            headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        body = _body(raw) if request.method == "POST" and kind in RECORDED else None
        recorded = (
            _ProxiedRequest(self.sink, kind, request.headers, body) if body is not None else None
        )
        hides = None
        if self.exact and body is not None and kind == "chat/completions":
            raw = json.dumps({**body, "logprobs": True, "return_token_ids": True}).encode()
            hides = _Hides(ids=not body.get("return_token_ids"), logprobs=not body.get("logprobs"))
        if recorded is None:
            self._say_once(request.method, kind)
        try:
            async with self.session.request(
                request.method, self._url(request), data=raw or None, headers=headers
            ) as answer:
                return await self._answered(request, answer, recorded, hides)
        except (aiohttp.ClientError, TimeoutError) as error:
            if recorded is not None:
                recorded.failed(f"{type(error).__name__}: {error}")
            message = f"Expected a server at {self.to}, found {type(error).__name__}: {error}"
            return _refusal(502, message, "upstream_unreachable")
        except asyncio.CancelledError:
            if recorded is not None:
                recorded.failed("the client left")
            raise

    async def _answered(
        self, request: web.Request, answer: aiohttp.ClientResponse, recorded: "_ProxiedRequest | None",
        hides: "_Hides | None",
    ) -> web.StreamResponse:  # fmt: skip
        """Pass the answer on as it arrives, and keep a copy to record."""
        headers = _passed(answer.headers)
        tape, size, ended = list[bytes](), 0, "the stream ended without a finish reason"
        streamed = answer.content_type == "text/event-stream"
        out = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        rewrites = hides is not None and answer.status == 200
        if rewrites and not streamed:
            data = await answer.read()
            if recorded is not None:
                recorded.answered(data, answer.status, streamed=False, ended=None)
            assert hides is not None
            return web.Response(status=200, body=hides.hidden_in(data), headers=headers)
        await out.prepare(request)
        try:
            async for piece in _lines(answer.content) if rewrites else answer.content.iter_any():
                if size < MAX_BYTES and recorded is not None:
                    tape.append(piece)
                    size += len(piece)
                await out.write(hides.hidden_line(piece) if rewrites and hides else piece)
        except asyncio.CancelledError:
            ended = "the client left"
            raise
        except (aiohttp.ClientError, OSError) as error:
            ended = f"the stream broke off: {type(error).__name__}"
            if request.transport is not None:  # an end that looks like one would be a lie
                request.transport.abort()
            return out
        finally:
            if recorded is not None:
                recorded.answered(b"".join(tape), answer.status, streamed=streamed, ended=ended)
        await out.write_eof()
        return out

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.key:
            sent = (_bearer(request), request.headers.get(KEY, ""))
            if not any(
                hmac.compare_digest(s.encode("utf-8", "replace"), self.key.encode()) for s in sent
            ):
                wanted = f"Expected the proxy's key, in `{KEY}` or as the bearer key."
                return _refusal(401, wanted, "invalid_api_key")
        if _segments(request) is None:
            return _refusal(404, "Expected a path below /v1.", "not_found")
        if request.headers.get("upgrade", "").lower() == "websocket":
            wanted = "Expected a request over HTTP: web sockets are neither passed on nor recorded."
            return _refusal(501, wanted, "not_supported")
        return None

    def _url(self, request: web.Request) -> URL:
        """The same path below the upstream's `/v1`, and never above it."""
        url = URL(self.to)
        for segment in _segments(request) or ():
            url = url / segment
        return url.with_query(request.rel_url.query)

    def _say_once(self, method: str, path: str) -> None:
        if (name := f"{method} {path}") not in self._announced and len(self._announced) < 100:
            self._announced.add(name)
            logging.getLogger(__name__).warning("%s passes through and is not recorded", name)


def _segments(request: web.Request) -> tuple[str, ...] | None:
    """The path below /v1, decoded; None if it would leave it."""
    rest = urllib.parse.unquote(request.rel_url.raw_path).removeprefix("/v1/")
    segments = tuple(
        segment for segment in rest.replace("\\", "/").split("/") if segment not in ("", ".")
    )
    decoded = {urllib.parse.unquote(segment) for segment in segments}
    leaves = any(
        part == ".." for segment in decoded for part in segment.replace("\\", "/").split("/")
    )
    return None if leaves else segments


def _bearer(request: web.Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def _body(raw: bytes) -> dict[str, Any] | None:
    """The request as a JSON object; None if it is none: the server says what it thinks of it."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


class _ProxiedRequest:
    """One request: a run on the caller's thread. Errors of recording are logged and never reach the client."""

    def __init__(self, sink: TraceSink, kind: str, headers: Any, body: dict[str, Any]) -> None:
        self.sink, self.kind, self.body = sink, kind, body
        self.is_recorded = False
        self.node = _readable(headers.get(NODE, ""))
        self.clock = time.perf_counter()
        self.trace = Trace(
            id=uuid.uuid4().hex, thread=_readable(headers.get(THREAD, "")), customer=_readable(headers.get(CUSTOMER, "")),
            graph="proxy", started=time.time(),
        )  # fmt: skip
        self._keep(lambda: self.sink.begin(self.trace))

    def answered(self, data: bytes, status: int, *, streamed: bool, ended: str | None) -> None:
        """Record the answer; only the first outcome of a request counts."""
        make = partial(read, self.kind, data, status=status, streamed=streamed, ended=ended)
        self._end(make)

    def failed(self, error: str) -> None:
        self._end(lambda: Reading(error=error))

    def _end(self, make: Any) -> None:
        if not self.is_recorded:
            self.is_recorded = True
            self._keep(lambda: self._hand_over(make()))

    def _keep(self, work: Any) -> None:
        try:
            work()
        except Exception:
            logging.getLogger(__name__).exception("a call was not recorded")

    def _hand_over(self, reading: Reading) -> None:
        seconds = time.perf_counter() - self.clock
        question = messages_of(self.kind, self.body)
        make = partial(_call, self.node, self.body, question, seconds)
        answers: list[Any] = [*reading.answers] or [(None, None)]
        for number, (completion, message) in enumerate(answers):
            call = partial(make, number, completion, message, reading.error)
            self.sink.add_call(self.trace.id, number, call)
        first = [_compact(message) for _, message in reading.answers[:1]]
        update = {
            "status": "failed" if reading.error else "completed",
            "error": reading.error,
            "messages": tuple(openai_message(m) for m in question) + tuple(first),
            "seconds": seconds,
            "lost": reading.lost,
        }
        self.sink.end(self.trace.id, partial(self.trace.model_copy, update=update))


class _Hides:
    """Removes fields from an answer that the client did not ask for."""

    def __init__(self, *, ids: bool, logprobs: bool) -> None:
        self.ids, self.logprobs = ids, logprobs

    def hidden_line(self, line: bytes) -> bytes:
        """A line of a stream; one that cannot be read passes as it is."""
        start, colon, data = line.partition(b":")
        chunk = _body(data) if colon and start == b"data" else None
        if chunk is None:
            return line
        self._hide(chunk)
        return b"data: " + json.dumps(chunk).encode() + b"\n"

    def hidden_in(self, data: bytes) -> bytes:
        """A whole answer; one that cannot be read passes as it is."""
        answer = _body(data)
        if answer is None:
            return data
        self._hide(answer)
        return json.dumps(answer).encode()

    def _hide(self, answer: dict[str, Any]) -> None:
        if self.ids:
            answer.pop("prompt_token_ids", None)
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, dict):
                continue
            if self.ids:
                choice.pop("token_ids", None)
            if self.logprobs and "logprobs" in choice:
                choice["logprobs"] = None


def _call(
    node: str, body: dict[str, Any], question: list[Any], seconds: float, number: int, completion: Completion | None,
    message: dict[str, Any] | None, error: str | None,
) -> ModelCall:  # fmt: skip
    whole = completion is not None and len(completion.logprobs) == len(completion.sampled_ids)
    response = completion.response_id if completion else uuid.uuid4().hex
    tools = body.get("tools")
    return ModelCall(
        response_id=f"{response}/{number}" if number else response,
        node=node,
        turn=sum(m.get("role") == "user" for m in question if isinstance(m, dict)),
        version=(completion.version if completion else "") or str(body.get("model") or ""),
        messages=tuple(openai_message(message) for message in question),
        tools=tuple(tool for tool in tools if isinstance(tool, dict))
        if isinstance(tools, list)
        else (),
        answer=None if message is None else _compact(message),
        prompt_ids=completion.prompt_ids if completion else (),
        sampled_ids=completion.sampled_ids if completion else (),
        logprobs=completion.logprobs if completion and whole else (),
        finish_reason=completion.finish_reason if completion else "",
        seconds=seconds,
        error=error,
        **sampling(body),
    )


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
    ours = (THREAD, NODE, CUSTOMER, KEY)
    return {
        k: _readable(v)
        for k, v in headers.items()
        if k.lower() not in _HOP and k.lower() not in ours
    }


def _readable(value: str) -> str:
    """A header's value as text: what is no UTF-8 is read as Latin-1, as HTTP once had it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


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
