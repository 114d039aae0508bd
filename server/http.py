"""What every HTTP server here shares: errors in OpenAI's shape, request ids, the bearer key."""

import asyncio
import hmac
import json
import logging
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateset_agents.plain import plain

MAX_BODY = 4 * 1024 * 1024
BODY_SECONDS = 20.0
"""How long a request's body may take to arrive."""
Result = TypeVar("Result")


class Refusal(Exception):
    """An answer that is an error: an HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry = retry
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.error = {"message": message, "type": kind, "param": param, "code": code}


class Guard:
    """Request ids, the bearer key and the limit on bodies. Plain ASGI: Starlette's function middleware hides a client's
    disconnection from the endpoint."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app = app
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}".encode()

        answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is not None:
            await _refused(refusal)(scope, receive, send_with_id)
            return
        try:
            waiting = [await asyncio.wait_for(_body(receive), BODY_SECONDS)]
        except TimeoutError:
            late = Refusal(408, f"Expected the body within {BODY_SECONDS:g} s.", "too_slow")
            await _closing(late)(scope, receive, send_with_id)
            return
        except Refusal as too_large:
            await _closing(too_large)(scope, receive, send_with_id)
            return

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        try:
            await self.app(scope, replayed, send_with_id)
        except Exception as error:
            # Not raised again: the server would close the connection under the client's next request.
            logging.getLogger(__name__).exception("%s %s", scope["method"], scope["path"])
            if answered:
                raise
            broken = Refusal(500, f"{type(error).__name__} in the server.", "internal_error")
            await _refused(broken)(scope, receive, send_with_id)

    def _refusal(self, headers: Headers, path: str) -> Refusal | None:
        sent = headers.get("authorization", "").removeprefix("Bearer ")
        size = headers.get("content-length", "0")
        if (
            self.key
            and path != "/health"
            and not hmac.compare_digest(sent.encode(), self.key.encode())
        ):
            wanted = "Expected `Authorization: Bearer KEY` with the server's key."
            return Refusal(401, wanted, "invalid_api_key")
        if size.isdigit() and int(size) > MAX_BODY:
            return _too_large(size)
        return None


async def _body(receive: Receive) -> Message:
    """The whole body as one message. Raises Refusal 413 for one that is too large."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise _too_large(str(size))
        if not message.get("more_body"):
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}


def _too_large(size: str) -> Refusal:
    return Refusal(413, f"Expected at most {MAX_BODY} bytes, found {size}.", "too_large")


def install(app: FastAPI, *, key: str | None) -> None:
    """Add the error shape, request ids and, if a key is set, its check to an app."""
    app.add_middleware(Guard, key=key)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return _refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refused(_invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _refused(Refusal(error.status_code, str(error.detail), "http_error"))


def _invalid(errors: Sequence[Any]) -> Refusal:
    """The most specific of a body's errors, with the field's name."""
    first = max(errors, key=lambda error: len(error["loc"]))
    # Pydantic names the alternatives of a union too; a field's name has no brackets or dashes, an index is a number.
    path = [part for part in first["loc"][1:] if isinstance(part, int) or str(part).isidentifier()]
    field = ".".join(map(str, path))
    if first["type"] == "json_invalid" or not field:
        return Refusal(400, "Expected a JSON object as the request's body.", "invalid_json")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"{field}: not supported here.", "unsupported_parameter", param=field)
    value = repr(plain(first.get("input")))[:60]
    message = f"{field}: {first['msg'][:200]}; found {value}."
    code = (
        "unsupported_value"
        if first["type"].startswith(("literal", "union_tag"))
        else "invalid_value"
    )
    return Refusal(400, message, code, param=field)


def _closing(refusal: Refusal) -> Response:
    """An answer after which the connection is closed: the rest of its body will not be read."""
    response = _refused(refusal)
    response.headers["connection"] = "close"
    return response


def _refused(refusal: Refusal) -> Response:
    headers = {} if refusal.retry else {"x-should-retry": "false"}
    return JSONResponse({"error": refusal.error}, refusal.status, headers)


def event(data: Any) -> str:
    """One server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. If the client disconnects, it is cancelled and Refusal 499 raised."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.25)

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Refusal(499, "The client left before the answer.", "client_left")
        return doing.result()
    finally:
        leaving.cancel()
        doing.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)
