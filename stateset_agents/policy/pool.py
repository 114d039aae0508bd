"""The servers of one policy: which of them a call goes to, and what is done while one is away.

A call that brought no answer is sent again, to another server or to the same one once it is back: as long as the caller's patience
lasts, with the same seed. What a lost answer had sampled is in no trace, since a trace takes its tokens from the answer that came; a call
that was sent more than once says so (`ModelCall.tries`). An answer that has begun to stream is never asked for again.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from stateset_agents.errors import ContextFull, PolicyRefused, PolicyUnreachable
from stateset_agents.policy import blocking_portal
from stateset_agents.policy.transport import ANSWER_SECONDS, session_here
from stateset_agents.policy.weight_files import InPlace

AT_ONCE = 256
"""Calls under way at one server; further ones wait here, where they cost nothing."""
LONGEST_PAUSE = 5.0
"""Seconds between two looks at a server that is away, at the most."""
ROOM_SECONDS = 5.0
RELOAD_SECONDS = 600.0
"""How long a server may take to read a whole model."""
ABOUT_WEIGHTS = ("/pause", "/resume", "/collective_rpc", "/reset_prefix_cache")
AT_ROOT = ("/tokenize", *ABOUT_WEIGHTS)
"""What vLLM has beside `/v1`, and not below it."""
BROKEN = 3
"""How often a call may break servers that stay alive."""
HOMES = 65_536
"""Conversations whose server is remembered."""


class _Lost(Exception):
    """No answer came: the server is away, or broke."""

    def __init__(self, told: str, *, refused: bool = False, broke: bool = False) -> None:
        super().__init__(told)
        self.refused = refused
        """Nobody listens there: one such failure is enough to look elsewhere."""
        self.broke = broke
        """The server is there and broke over it, as it may do each time."""


class _Busy(Exception):
    """The server is there and asks to come back later."""


@dataclass(slots=True)
class Server:
    """One server, and what was seen of it."""

    url: str
    running: int = 0
    failures: int = 0
    """In a row."""
    away_until: float = 0.0
    """The breaker: until then nothing is sent there, and after it a look at its health comes first; 0 where it is well."""
    last: str = ""
    """What it failed with."""
    looking: bool = False
    loading: threading.Lock = field(default_factory=threading.Lock)
    """One load at a time, whichever loop asks for it."""

    def failed(self, lost: _Lost) -> None:
        self.failures += 1
        self.last = str(lost)
        if lost.refused or self.failures >= 3:
            pause = min(LONGEST_PAUSE, 0.25 * 2.0 ** min(self.failures, 8))
            self.away_until = time.monotonic() + pause

    def well(self) -> None:
        self.failures, self.away_until = 0, 0.0


@dataclass(slots=True)
class Sent:
    """How a call came to its answer."""

    server: str
    tries: int


class Servers:
    """All servers that hold one policy. Shared by every policy object of this process that names the same URLs."""

    def __init__(self, urls: Sequence[str], key: str = "", at_once: int = AT_ONCE) -> None:
        self.servers = [Server(url) for url in urls]
        self.key, self.at_once = key, at_once
        self.published: dict[str, Path] = {}
        """Versions that every server is to know, with their weights: one that was restarted is given them again."""
        self.in_place: InPlace | None = None
        """Set where whole models are published and each server holds one at a time."""
        self.tokenizes = True
        """Whether they render messages into ids (`/tokenize`); found out by asking."""
        self._homes: OrderedDict[str, Server] = OrderedDict()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._reading: Counter[str] = Counter()
        self._counting = threading.Lock()  # synchronous callers have a loop in another thread
        self.jobs = 0
        """How many jobs have ended that waited for these servers: a call that began before one did waits no longer. A synchronous node
        in a thread of its own hears of it in no other way."""

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    # What is being read ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self, names: Iterable[str]) -> Iterator[None]:
        """While an episode runs: the versions it asks for are not unloaded."""
        mine = list(names)
        with self._counting:
            self._reading.update(mine)
        try:
            yield
        finally:
            with self._counting:
                self._reading.subtract(mine)

    def read(self, name: str) -> bool:
        """Whether an episode that runs asks for it."""
        return self._reading[name] > 0

    # Calls -----------------------------------------------------------------------------------------

    async def post(
        self, path: str, body: dict[str, Any], *, session: str = "", patience: float = 0.0
    ) -> tuple[dict[str, Any], Sent]:
        """The answer to a call, and how it was come by. `patience` is for how many seconds it is tried again while servers are away.

        Raises PolicyUnreachable where no answer came, PolicyRefused and ContextFull where a server said no.
        """
        tries = _Tries(self, session, patience)
        while True:
            server = await tries.next()
            with self._at(server):
                try:
                    answer = await self._once(server, path, body)
                except (_Lost, _Busy) as gone:
                    tries.failed(server, gone)
                    continue
            server.well()
            return answer, Sent(server.url, tries.count)

    async def stream(
        self, path: str, body: dict[str, Any], *, session: str = "", patience: float = 0.0
    ) -> AsyncGenerator[dict[str, Any]]:
        """The events of a streamed answer. Raises as `post` does; PolicyUnreachable as well where an answer breaks off."""
        tries = _Tries(self, session, patience)
        while True:
            server, begun = await tries.next(), False
            with self._at(server):
                try:
                    async with contextlib.aclosing(self._events(server, path, body)) as events:
                        async for event in events:
                            begun = True
                            yield {**event, "tries": tries.count}
                    server.well()
                    return
                except (_Lost, _Busy) as gone:
                    tries.failed(server, gone)
                    if begun:
                        raise PolicyUnreachable(
                            f"Expected an answer from {server.url} to its end, found that it broke off: {gone}"
                        ) from None

    @contextlib.contextmanager
    def _at(self, server: Server) -> Iterator[None]:
        with self._counting:
            server.running += 1
        try:
            yield
        finally:
            with self._counting:
                server.running -= 1
            self._wake()

    def unreachable(self, tries: int) -> PolicyUnreachable:
        seen = "; ".join(f"{one.url}: {one.last or 'not asked'}" for one in self.servers)
        often = f" after {tries} tries" if tries > 1 else ""
        return PolicyUnreachable(
            f"Expected an answer from a policy server, found none{often}. {seen}. "
            "Start one with `stateset-agents policy serve`, or give --base-url."
        )

    async def free(self, session: str, failed: Sequence[Server], tries: "_Tries") -> Server:
        """A server that is well, has room and did not just fail: the conversation's own, whose cache knows it, or the one with
        least to do. Raises PolicyUnreachable where none is found until the deadline."""
        while True:
            well = [one for one in self.servers if not one.away_until and one not in failed]
            if well:
                least = min(well, key=lambda one: one.running)
                home = self._homes.get(session)
                best = home if home in well and home.running <= 2 * least.running + 8 else least
                # A synchronous caller keeps its thread until it is answered, and may keep those from ending that it would wait for.
                if best.running < self.at_once or blocking_portal.is_here():
                    if session:
                        self._homes[session] = best
                        self._homes.move_to_end(session)
                        while len(self._homes) > HOMES:
                            self._homes.popitem(last=False)
                    return best
                await self._room()
                continue
            now = time.monotonic()
            due = [
                one for one in self.servers
                if 0 < one.away_until <= now and not one.looking and one not in failed
            ]  # fmt: skip
            for one in due:
                await self._look(one)
            if any(not one.away_until for one in due):
                continue
            if not tries.patient:
                raise self.unreachable(tries.count)
            await asyncio.sleep(0.05)

    async def _room(self) -> None:
        """Wait until a call has ended, or look again after a while: a server with room may have gone meanwhile."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=ROOM_SECONDS)
            if not waiter.done():
                waiter.cancel()
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # the place goes to the next in line
                self._wake()
            raise

    def _wake(self) -> None:
        with contextlib.suppress(IndexError):  # another thread woke the last one
            while True:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    with contextlib.suppress(RuntimeError):  # its loop has ended
                        waiter.get_loop().call_soon_threadsafe(_let_in, waiter)
                        return

    async def _look(self, server: Server) -> None:
        """Whether a server that was away is back. What it should know it is told before anybody asks it."""
        server.looking = True
        try:
            root = server.url.removesuffix("/v1")
            async with session_here().get(
                f"{root}/health", timeout=aiohttp.ClientTimeout(total=2), headers=self.headers
            ) as answer:
                if answer.status == 200:
                    for name in await self._missing(server):
                        # One that it does not take is told to who asks for it; the others are served.
                        with contextlib.suppress(PolicyRefused):
                            await self.load(server, name)
                    server.well()
                    return
                server.failed(_Lost(f"/health answered {answer.status}", refused=True))
        except (aiohttp.ClientError, TimeoutError, PolicyUnreachable) as error:
            server.failed(_Lost(f"{type(error).__name__}: {error}", refused=True))
        finally:
            server.looking = False

    async def _missing(self, server: Server) -> list[str]:
        if not self.published:
            return []
        known = await self._served(server)
        return [name for name in self.published if name not in known]

    async def _served(self, server: Server) -> set[str]:
        answer = await self.ask(server, "GET", "/models")
        return {str(model["id"]) for model in answer["data"]}

    # One request -----------------------------------------------------------------------------------

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def _once(self, server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._asked(server, path, body) as response:
            answer = await response.json(content_type=None)
            if not isinstance(answer, dict):
                raise _Lost(f"answered {str(answer)[:200]}")
            return answer

    async def _events(
        self, server: Server, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any]]:
        async with self._asked(server, path, body) as response:
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                told = line[5:].strip()
                if told == b"[DONE]":
                    return
                event = json.loads(told)
                if "error" in event and "choices" not in event:
                    error = event["error"]
                    reason = error.get("message") if isinstance(error, dict) else error
                    raise PolicyUnreachable(
                        f"Expected an answer from {server.url}, found in the middle of it: {reason}"
                    )
                yield event
            raise _Lost("the stream ended without its end")

    @contextlib.asynccontextmanager
    async def _asked(
        self, server: Server, path: str, body: dict[str, Any]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request under way; its response where that is 200, what went wrong as the exception that says what to do else."""
        where = _where(server, path)
        try:
            async with session_here().post(where, json=body, headers=self.headers) as response:
                if response.status == 200:
                    yield response
                    return
                reason = _reason(await response.text())
                if response.status in (408, 429, 503):
                    raise _Busy(f"{response.status}: {reason}")
                if response.status >= 500:
                    raise _Lost(f"{response.status}: {reason}", broke=True)
                name = str(body.get("model"))
                if response.status == 404 and name in self.published:
                    try:
                        await self.load(server, name)  # it was restarted, and nothing was sampled
                    except PolicyRefused:
                        raise
                    except PolicyUnreachable as gone:
                        raise _Lost(str(gone)) from None
                    raise _Busy(f"did not know {name} yet")
                raise refusal(where, response.status, reason)
        except aiohttp.ClientConnectorError as error:
            raise _Lost(f"{type(error).__name__}: {error}", refused=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            told = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise _Lost(f"{type(error).__name__}: {told}") from None

    async def ask(
        self, server: Server, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = 60
    ) -> Any:  # fmt: skip
        """What one server says to a question that samples nothing. Raises PolicyUnreachable and PolicyRefused."""
        where = _where(server, path)
        headers = self.headers
        if self.in_place is not None and path.partition("?")[0] in ABOUT_WEIGHTS:
            headers = {**headers, "x-weights-key": self.in_place.key}
        try:
            async with session_here().request(
                method, where, json=body, headers=headers, timeout=aiohttp.ClientTimeout(total=seconds)
            ) as response:  # fmt: skip
                text = await response.text()
                if response.status != 200:
                    raise refusal(where, response.status, _reason(text))
                return (
                    json.loads(text) if "json" in response.headers.get("content-type", "") else None
                )
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PolicyUnreachable(
                f"Expected a policy server at {server.url}, found {type(error).__name__}: {error}. "
                "Start one with `stateset-agents policy serve`, or give --base-url."
            ) from None

    async def load(self, server: Server, name: str) -> None:
        """Have one server serve a published version, once for however many ask; one that is published no more is left out."""
        while not server.loading.acquire(blocking=False):
            await asyncio.sleep(0.02)
        try:
            path = self.published.get(name)
            if path is None or name in await self._served(server):
                return
            if self.in_place is not None:
                await self._put_in_place(server, path, self.in_place, name)
                return
            body = {"lora_name": name, "lora_path": str(path.resolve())}
            await self.ask(server, "POST", "/load_lora_adapter", body)
        finally:
            server.loading.release()

    async def _put_in_place(self, server: Server, weights: Path, how: InPlace, name: str) -> None:
        """No other version's name is left, answers under way are waited for, and later calls wait. Where it fails the server stays
        paused, so that nobody is answered with weights of which nobody knows which they are; the next try goes on from there."""
        for model in (await self.ask(server, "GET", "/models"))["data"]:
            if model.get("parent"):
                await self.ask(server, "POST", "/unload_lora_adapter", {"lora_name": model["id"]})
        await self.ask(server, "POST", "/pause?mode=wait", seconds=ANSWER_SECONDS)
        put = {"method": "put_in_place", "args": [str(weights.resolve())]}
        await self.ask(server, "POST", "/collective_rpc", put, seconds=RELOAD_SECONDS)
        reset = await self.ask(server, "POST", "/reset_prefix_cache")
        if not reset["success"]:
            raise PolicyUnreachable(
                f"Expected {server.url} to forget its prefix cache, found that it is in use. Nobody else may ask it while it is trained."
            )
        named = {"lora_name": name, "lora_path": str(how.nothing)}
        await self.ask(server, "POST", "/load_lora_adapter", named)
        await self.ask(server, "POST", "/resume")


def _let_in(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Tries:
    """The tries of one call: which server comes next, and when it is enough."""

    def __init__(self, servers: Servers, session: str, patience: float) -> None:
        self.servers, self.session = servers, session
        self.deadline, self.jobs = time.monotonic() + patience, servers.jobs
        self.count = 0
        self._failed: list[Server] = []
        self._broke = 0
        self._pause = 0.05

    async def next(self) -> Server:
        """The server to ask. Raises PolicyUnreachable once all were asked and patience has ended."""
        if self._broke >= BROKEN:
            raise self.servers.unreachable(self.count)
        fresh = [s for s in self.servers.servers if not s.away_until and s not in self._failed]
        if self._failed and not fresh and self.patient:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, 2.0)
            self._failed.clear()
        server = await self.servers.free(self.session, self._failed, self)
        self.count += 1
        return server

    @property
    def patient(self) -> bool:
        """Whether servers that are away are waited for."""
        return time.monotonic() < self.deadline and self.jobs == self.servers.jobs

    def failed(self, server: Server, gone: "_Lost | _Busy") -> None:
        self._failed.append(server)
        if isinstance(gone, _Lost):
            self._broke += gone.broke
            server.failed(gone)
        else:
            server.last = str(gone)


def _where(server: Server, path: str) -> str:
    base = server.url.removesuffix("/v1") if path.partition("?")[0] in AT_ROOT else server.url
    return f"{base}{path}"


def _reason(text: str) -> str:
    """What an error says, of OpenAI's shape or not."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["error"]["message"])
    return text.strip()[:200]


def refusal(where: str, status: int, reason: str) -> ContextFull | PolicyRefused:
    """What a server's no means here."""
    if status == 400 and "maximum context length" in reason:
        return ContextFull(reason)
    if status in (401, 403):
        return PolicyRefused(
            f"Expected {where} to accept the key, found {status}: {reason}. Set STATESET_POLICY_KEY to the server's."
        )
    return PolicyRefused(f"Expected an answer from {where}, found {status}: {reason}")


_known: dict[tuple[tuple[str, ...], str], Servers] = {}
_finding = threading.Lock()


def servers_at(base_url: str, key: str = "") -> Servers:
    """The servers at a base URL that ends in `/v1`, or at several with commas between them."""
    urls = tuple(url.strip().rstrip("/") for url in base_url.split(",") if url.strip())
    with _finding:
        if (urls, key) not in _known:
            _known[urls, key] = Servers(urls, key)
        return _known[urls, key]
