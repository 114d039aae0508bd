"""A recording proxy for apps in any language: OpenAI's protocol in, OpenAI's protocol out, and every call in a store.

    stateset-agents traces proxy --to http://policy:8001/v1 --traces traces.db      # then point the app's base URL at it

Who calls says so in headers: `x-stateset-thread`, `x-stateset-node`, `x-stateset-customer`. What is not a chat completion passes through.
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

from stateset_agents.policy.chat_model import Sampled, joined, sampled
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.conversion import openai_message, sampling
from stateset_agents.traces.sink import Keeper

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
"""Headers that are between two machines, and not passed on."""
MOST = 64 * 2**20
"""Bytes of a request."""


class Proxy:
    """Passes calls to `to` (ends in /v1) and keeps them. With `exact` it asks vLLM, or the embedded engine, for token ids,
    which the client does not see unless it asked for them."""

    def __init__(self, to: str, keeper: Keeper, *, exact: bool) -> None:
        self.to = to.rstrip("/")
        self.keeper = keeper
        self.exact = exact

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MOST)
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
        heard = _Heard(self.keeper, request.headers, body)
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
                    return await self._streamed(request, answer, headers, heard, hides)
                data = await answer.read()
                if answer.status != 200:
                    heard.failed(f"{answer.status}: {data[:300].decode(errors='replace')}")
                    return web.Response(status=answer.status, body=data, headers=headers)
                told = _completion(data)
                if told is None:
                    heard.failed(f"no chat completion: {data[:300].decode(errors='replace')}")
                    return web.Response(body=data, headers=headers)
                heard.answered(
                    [
                        (sampled(told, n), choice["message"])
                        for n, choice in enumerate(told["choices"])
                    ]
                )
                if hides is not None:
                    hides.hide(told)
                    data = json.dumps(told).encode()
                return web.Response(body=data, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            heard.failed(f"{type(error).__name__}: {error}")
            return self._unreachable(error)
        except asyncio.CancelledError:
            heard.failed("the client left")
            raise

    async def _streamed(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str], heard: "_Heard",
        hides: "_Hides | None",
    ) -> web.StreamResponse:  # fmt: skip
        out = web.StreamResponse(headers=headers)
        await out.prepare(request)
        choices = _Choices(int(heard.body.get("n") or 1))
        try:
            async for line in _lines(answer.content):
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    choices.add(chunk)
                    if choices.whole:  # a client may leave at its end, before we know of it
                        heard.answered(choices.answers())
                    if hides is not None:
                        line = f"data: {json.dumps(hides.hidden(chunk))}\n".encode()
                await out.write(line)
        except asyncio.CancelledError:
            heard.failed("the client left")
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            heard.failed(f"the stream broke off: {type(error).__name__}")
            if request.transport is not None:  # an end that looks like one would be a lie
                request.transport.abort()
            return out
        heard.failed("the stream ended without a finish reason")
        await out.write_eof()
        return out

    def _unreachable(self, error: Exception) -> web.Response:
        told = f"Expected a server at {self.to}, found {type(error).__name__}: {error}"
        return _refusal(502, told, "upstream_unreachable")


class _Choices:
    """The choices of a streamed answer, put together again."""

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self._chunks: dict[int, list[dict[str, Any]]] = {}
        self._ended: set[int] = set()

    def add(self, chunk: dict[str, Any]) -> None:
        for choice in chunk.get("choices") or []:
            index = int(choice.get("index") or 0)
            mine = self._chunks.setdefault(index, [])
            mine.append({**chunk, "choices": [{**choice, "index": 0}]})
            if choice.get("finish_reason"):
                self._ended.add(index)

    @property
    def whole(self) -> bool:
        return len(self._ended) >= self._asked

    def answers(self) -> "Answers":
        return [(joined(chunks), _message(chunks)) for _, chunks in sorted(self._chunks.items())]


Answers = list[tuple[Sampled, dict[str, Any]]]
"""The tokens and the message of each choice."""


class _Heard:
    """One request: a run of its own on the caller's thread. What goes wrong here is logged, and is not the client's."""

    def __init__(self, keeper: Keeper, headers: Any, body: dict[str, Any]) -> None:
        self.keeper, self.body = keeper, body
        self.kept = False
        self.node = headers.get(NODE, "")
        self.clock = time.perf_counter()
        self.trace = Trace(
            id=uuid.uuid4().hex, thread=headers.get(THREAD, ""), customer=headers.get(CUSTOMER, ""), graph="proxy",
            started=time.time(),
        )  # fmt: skip

    def answered(self, answers: Answers) -> None:
        """The first word on a request counts."""
        self._keep(answers, None)

    def failed(self, error: str) -> None:
        self._keep([], error)

    def _keep(self, answers: Answers, error: str | None) -> None:
        if self.kept:
            return
        self.kept = True
        try:
            self._hand_over(answers, error)
        except Exception:
            logging.getLogger(__name__).exception("a call was not recorded")

    def _hand_over(self, answers: Answers, error: str | None) -> None:
        seconds = time.perf_counter() - self.clock
        told = partial(_call, self.node, self.body, seconds)
        self.keeper.begin(self.trace)
        for number, (tokens, message) in enumerate(answers):
            self.keeper.add_call(
                self.trace.id, number, partial(told, number, tokens, message, None)
            )
        if error is not None:
            self.keeper.add_call(self.trace.id, 0, partial(told, 0, None, None, error))
        first = [_spoken(message) for _, message in answers[:1]]
        update = {
            "status": "failed" if error else "completed",
            "error": error,
            "messages": (*self.body["messages"], *first),
            "seconds": seconds,
        }
        self.keeper.end(self.trace.id, partial(self.trace.model_copy, update=update))


class _Hides:
    """Takes out of an answer what the client did not ask for."""

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
        """A copy: what was there is still to be recorded."""
        copy = {**chunk, "choices": [dict(choice) for choice in chunk.get("choices") or []]}
        self.hide(copy)
        return copy


def _call(
    node: str, body: dict[str, Any], seconds: float, number: int, tokens: Sampled | None,
    message: dict[str, Any] | None, error: str | None,
) -> ModelCall:  # fmt: skip
    whole = tokens is not None and len(tokens.logprobs) == len(tokens.sampled_ids)
    response = tokens.response_id if tokens else uuid.uuid4().hex
    return ModelCall(
        response_id=f"{response}/{number}" if number else response,
        node=node,
        turn=sum(told.get("role") == "user" for told in body["messages"] if isinstance(told, dict)),
        version=tokens.version if tokens else str(body.get("model") or ""),
        messages=tuple(openai_message(told) for told in body["messages"]),
        tools=tuple(body.get("tools") or ()),
        answer=None if message is None else _spoken(message),
        prompt_ids=tokens.prompt_ids if tokens else (),
        sampled_ids=tokens.sampled_ids if tokens else (),
        logprobs=tokens.logprobs if tokens and whole else (),
        finish_reason=tokens.finish_reason if tokens else "",
        seconds=seconds,
        error=error,
        **sampling(body),
    )


def _completion(data: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(data)
    except ValueError:
        return None
    choices = told.get("choices") if isinstance(told, dict) else None
    good = isinstance(choices, list) and choices and all("message" in one for one in choices)
    return told if good and "id" in told else None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines with their ends, however long: a chunk that carries a prompt's ids is."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""What a message says, in pieces where it is streamed."""


def _spoken(message: dict[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in message.items() if value not in (None, [], "")}
    return {"content": "", **said}


def _message(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's pieces make."""
    said, calls = dict.fromkeys(_TEXTS, ""), dict[int, dict[str, Any]]()
    for chunk in chunks:
        delta = chunk["choices"][0].get("delta") or {}
        for name in _TEXTS:
            said[name] += delta.get(name) or ""
        for piece in delta.get("tool_calls") or []:
            whole = calls.setdefault(
                piece.get("index", 0),
                {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
            )
            whole["id"] = piece.get("id") or whole["id"]
            for name, part in (piece.get("function") or {}).items():
                whole["function"][name] = whole["function"].get(name, "") + (part or "")
    message: dict[str, Any] = {"role": "assistant", **said}
    return {**message, "tool_calls": list(calls.values())} if calls else message


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
