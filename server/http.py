"""What every HTTP server here shares: errors in OpenAI's shape, request ids, the bearer key."""

import asyncio
import hmac
import json
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4 * 1024 * 1024
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
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > MAX_BODY:
                raise _too_large(str(arrived))
            return message

        try:
            await self.app(scope, counted, send_with_id)
        except Exception as error:
            if not answered:
                broken = Refusal(500, f"{type(error).__name__} in the server.", "internal_error")
                await _refused(broken)(scope, receive, send_with_id)
            raise  # the server logs it

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


def _too_large(size: str) -> Refusal:
    return Refusal(413, f"Expected at most {MAX_BODY} bytes, found {size}.", "too_large")


def install(app: FastAPI, *, key: str | None) -> None:
    """Add the error shape, request ids and, if a key is set, its check to an app."""
    app.add_middleware(Guard, key=key)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return _refused(refusal)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _refused(Refusal(error.status_code, str(error.detail), "http_error"))


def _refused(refusal: Refusal) -> Response:
    headers = {} if refusal.retry else {"x-should-retry": "false"}
    return JSONResponse({"error": refusal.error}, refusal.status, headers)


async def body_of(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises Refusal 400 for anything else."""
    try:
        body = await request.json()
    except (ValueError, UnicodeDecodeError):
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "Expected a JSON object as the request's body.", "invalid_json")
    return body


def messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The request's messages, at least one and each with a known role. Raises Refusal 400."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(
            400, "messages: expected a list with at least one message.", "invalid_value",
            param="messages",
        )  # fmt: skip
    for place, message in enumerate(messages):
        roles = ("system", "developer", "user", "assistant", "tool")
        if not isinstance(message, dict) or message.get("role") not in roles:
            raise Refusal(
                400, f"messages[{place}]: expected a role of {', '.join(roles)}.", "invalid_value",
                param="messages",
            )  # fmt: skip
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(c, dict) and "id" in c for c in calls):
            raise Refusal(
                400, f"messages[{place}].tool_calls: expected calls with an id.", "invalid_value",
                param="messages",
            )  # fmt: skip
    return messages


def number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A numeric field within bounds. Raises Refusal 400 that names the field."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refusal(
            400, f"{name}: expected a number from {low:g} to {high:g}, found {str(value)[:40]!r}.",
            "invalid_value", param=name,
        )  # fmt: skip
    return value


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
