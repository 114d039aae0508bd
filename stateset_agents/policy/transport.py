"""HTTP requests to one replica, and the errors in its answers. Connections are pooled for each event loop."""

import asyncio
import contextlib
import json
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp

from stateset_agents.errors import ContextFull, PolicyRefused, PolicyUnreachable

ANSWER_SECONDS = 120.0
"""Seconds until a replica without an answer counts as unreachable."""
WEIGHTS_PATHS = ("/pause", "/resume", "/collective_rpc", "/reset_prefix_cache")
ROOT_PATHS = ("/tokenize", *WEIGHTS_PATHS)
"""Paths of vLLM that are not below `/v1`."""

_sessions: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, tuple[aiohttp.ClientSession, AsyncGenerator[None]]
] = weakref.WeakKeyDictionary()


class Unanswered(Exception):
    """No answer: the replica is unreachable or failed."""

    def __init__(self, message: str, *, refused: bool = False, crashed: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """The connection was refused: one such failure is enough to try another replica."""
        self.crashed = crashed
        """The replica failed on this call (5xx), perhaps each time."""


class Busy(Exception):
    """The replica is busy (429 or 503): try again later."""


class UnknownModel(PolicyRefused):
    """The replica does not know the requested model; it may have been restarted."""

    def __init__(self, message: str, model: str) -> None:
        super().__init__(message, status=404)
        self.model = model


def session_here() -> aiohttp.ClientSession:
    """The pooled connections of this event loop."""
    loop = asyncio.get_running_loop()
    session, _ = _sessions.get(loop, (None, None))
    if session is None or session.closed:
        session = aiohttp.ClientSession(
            # Uvicorn, and so vLLM, closes a connection that was idle for five seconds. We close it first.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=10),
        )
        _sessions[loop] = (session, _closed_with_the_loop(session))
    return session


def _closed_with_the_loop(session: aiohttp.ClientSession) -> AsyncGenerator[None]:
    """Holds a session. What ends an event loop (`asyncio.run`, a server) closes its generators, and so the session; an app need
    not know that there is one."""

    async def hold() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await session.close()

    holder = hold()
    with contextlib.suppress(StopIteration):  # run to its `yield`, which awaits nothing
        holder.asend(None).send(None)
    return holder


async def close_connections() -> None:
    """Close this event loop's pooled connections."""
    _, holder = _sessions.pop(asyncio.get_running_loop(), (None, None))
    if holder is not None:
        await holder.aclose()


class Transport:
    """Requests to replicas, with their key. A replica is named by its base URL."""

    def __init__(self, key: str = "") -> None:
        self.key = key

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def post(self, url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a call that samples. Raises Unanswered, Busy and UnknownModel, where a retry can help, and
        PolicyRefused and ContextFull, where it cannot."""
        async with self._call(url, path, body) as response:
            answer = await response.json(content_type=None)
            if not isinstance(answer, dict):
                raise Unanswered(f"answered {str(answer)[:200]}")
            return answer

    async def events(
        self, url: str, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any]]:
        """The events of a streamed answer. Raises like `post`, and PolicyUnreachable for an error in the stream."""
        async with self._call(url, path, body) as response:
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event and "choices" not in event:
                    error = event["error"]
                    reason = error.get("message") if isinstance(error, dict) else error
                    raise PolicyUnreachable(
                        f"Expected an answer from {url}, found in the middle of it: {reason}"
                    )
                yield event
            raise Unanswered("the stream ended without its end")

    @contextlib.asynccontextmanager
    async def _call(
        self, url: str, path: str, body: dict[str, Any]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request under way: its response with status 200, or else an exception."""
        address = address_of(url, path)
        try:
            async with session_here().post(address, json=body, headers=self.headers) as response:
                if response.status == 200:
                    yield response
                    return
                reason = _reason(await response.text())
                if response.status in (408, 429, 503):
                    raise Busy(f"{response.status}: {reason}")
                if response.status >= 500:
                    raise Unanswered(f"{response.status}: {reason}", crashed=True)
                refusal = _refusal(address, response.status, reason)
                model = str(body.get("model"))
                if response.status == 404 and model in reason:  # and not a path that is missing
                    raise UnknownModel(str(refusal), model)
                raise refusal
        except aiohttp.ClientConnectorError as error:
            raise Unanswered(f"{type(error).__name__}: {error}", refused=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise Unanswered(f"{type(error).__name__}: {message}") from None

    async def request(
        self, url: str, method: str, path: str, body: dict[str, Any] | None = None, *,
        headers: Mapping[str, str] | None = None, seconds: float = 60,
    ) -> Any:  # fmt: skip
        """The answer to a request that does not sample; None if it is not JSON. Raises PolicyUnreachable and PolicyRefused."""
        address = address_of(url, path)
        try:
            async with session_here().request(
                method, address, json=body, headers={**self.headers, **(headers or {})},
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:  # fmt: skip
                text = await response.text()
                if response.status != 200:
                    raise _refusal(address, response.status, _reason(text))
                is_json = "json" in response.headers.get("content-type", "")
                return json.loads(text) if is_json else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PolicyUnreachable(
                f"Expected a policy server at {url}, found {type(error).__name__}: {error}. "
                "Start one with `stateset-agents policy serve`, or give --base-url."
            ) from None

    async def check_health(self, url: str) -> None:
        """Raises Unanswered if the replica is not healthy."""
        try:
            async with session_here().get(
                f"{root_of(url)}/health", timeout=aiohttp.ClientTimeout(total=2), headers=self.headers
            ) as response:  # fmt: skip
                if response.status != 200:
                    raise Unanswered(f"/health answered {response.status}", refused=True)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unanswered(f"{type(error).__name__}: {error}", refused=True) from None


def root_of(url: str) -> str:
    """A replica's address without `/v1`."""
    return url.removesuffix("/v1")


def address_of(url: str, path: str) -> str:
    base = root_of(url) if path.partition("?")[0] in ROOT_PATHS else url
    return f"{base}{path}"


def _reason(text: str) -> str:
    """The message of an error, in OpenAI's shape or any other."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["error"]["message"])
    return text.strip()[:200]


def _refusal(address: str, status: int, reason: str) -> ContextFull | PolicyRefused:
    """The exception for a server's refusal."""
    if status == 400 and "maximum context length" in reason:
        return ContextFull(reason)
    if status in (401, 403):
        return PolicyRefused(
            f"Expected {address} to accept the key, found {status}: {reason}. Set STATESET_POLICY_KEY to the server's.",
            status=status,
        )
    return PolicyRefused(
        f"Expected an answer from {address}, found {status}: {reason}", status=status
    )
