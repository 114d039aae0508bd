"""The replicas of one policy: which one gets a call, and what happens while one does not answer.

A call without an answer is sent again with the same seed, to another replica or to the same one when it is back, as long as the
caller allows (`retry_seconds`). A trace takes its tokens from the answer that arrived, so tokens of a lost answer are in no
trace; `ModelCall.tries` counts the sends. An answer that has begun to stream is never requested again.
"""

import asyncio
import contextlib
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.errors import PolicyRefused, PolicyUnreachable
from stateset_agents.policy import blocking_portal
from stateset_agents.policy.chat_template import Hides
from stateset_agents.policy.replica import Replica
from stateset_agents.policy.transport import Busy, Transport, Unanswered, UnknownModel

MAX_RUNNING = 256
"""The most calls at one replica; further calls wait here."""
MAX_CRASHES = 3
"""How often a call may fail at healthy replicas until it is given up."""
MAX_SESSIONS = 65_536
"""The most conversations whose replica is remembered."""
ROOM_SECONDS = 5.0
"""How long a call waits for room at its replica before it looks for another, in seconds."""

Restore = Callable[[Replica, str | None], Awaitable[bool]]
"""Gives a replica that came back the version with this name, or all missing versions (None). False if that version was never
published."""


@dataclass(slots=True)
class Sent:
    """Where a call's answer came from."""

    replica: str
    """The base URL of the replica that answered."""
    tries: int


class ReplicaPool:
    """All replicas of one policy, at base URLs that end in `/v1`."""

    def __init__(self, urls: Sequence[str], key: str = "", max_running: int = MAX_RUNNING) -> None:
        self.replicas = [Replica(url) for url in urls]
        self.transport = Transport(key)
        self.max_running = max_running
        self.restore: Restore | None = None
        """Set by the publisher of versions (`publishing.Publisher`)."""
        self.tokenizes = True
        self.hides: Hides = frozenset()
        """What the served model's chat template does not show; requests that need it are refused."""
        """Whether the replicas tokenize messages (`/tokenize`); set after the first try."""
        self._affinity: OrderedDict[str, Replica] = OrderedDict()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._pinned: Counter[str] = Counter()
        self._lock = threading.Lock()  # synchronous callers have an event loop in another thread
        self._leases_ended = 0

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """A job's use of the pool. When it ends, calls that began before stop waiting for unreachable replicas, including those
        of synchronous nodes in other threads, which cannot be cancelled."""
        try:
            yield
        finally:
            self._leases_ended += 1

    @contextlib.contextmanager
    def pin(self, versions: Iterable[str]) -> Iterator[None]:
        """While an episode runs, its versions are not unloaded."""
        names = list(versions)
        with self._lock:
            self._pinned.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._pinned.subtract(names)

    def is_pinned(self, version: str) -> bool:
        return self._pinned[version] > 0

    async def post(
        self, path: str, body: dict[str, Any], *, session: str = "", retry_seconds: float = 0.0
    ) -> tuple[dict[str, Any], Sent]:
        """The answer to a call, and where it came from. `session` names the conversation, which stays at one replica. Raises
        PolicyUnreachable if no answer arrives within `retry_seconds`, PolicyRefused and ContextFull if a replica refuses."""
        attempts = _Attempts(self, session, retry_seconds)
        while True:
            replica = await attempts.next_replica()
            with self._running_at(replica):
                try:
                    answer = await self.transport.post(replica.url, path, body)
                except (Unanswered, Busy, UnknownModel) as error:
                    attempts.record_failure(replica, await self._restored(replica, error))
                    continue
            replica.mark_healthy()
            return answer, Sent(replica.url, attempts.count)

    async def stream(
        self, path: str, body: dict[str, Any], *, session: str = "", retry_seconds: float = 0.0
    ) -> AsyncGenerator[tuple[dict[str, Any], Sent]]:
        """The events of a streamed answer, each with where it came from. Raises like `post`, and PolicyUnreachable if the
        stream breaks off."""
        attempts = _Attempts(self, session, retry_seconds)
        while True:
            replica, begun = await attempts.next_replica(), False
            with self._running_at(replica):
                try:
                    events = self.transport.events(replica.url, path, body)
                    async with contextlib.aclosing(events):
                        async for event in events:
                            begun = True
                            yield event, Sent(replica.url, attempts.count)
                    replica.mark_healthy()
                    return
                except (Unanswered, Busy, UnknownModel) as error:
                    attempts.record_failure(replica, await self._restored(replica, error))
                    if begun:
                        raise PolicyUnreachable(
                            f"Expected an answer from {replica.url} to its end, found that it broke off: {error}"
                        ) from None

    async def _restored(
        self, replica: Replica, error: Unanswered | Busy | UnknownModel
    ) -> Unanswered | Busy:
        """Handle a failure before the next try. A version that a replica lost is published to it again."""
        if not isinstance(error, UnknownModel):
            return error
        try:
            known = self.restore is not None and await self.restore(replica, error.model)
        except PolicyRefused:
            raise
        except PolicyUnreachable as unreachable:
            return Unanswered(str(unreachable))
        if not known:
            raise error
        return Busy(f"did not know {error.model} yet")

    @contextlib.contextmanager
    def _running_at(self, replica: Replica) -> Iterator[None]:
        with self._lock:
            replica.running += 1
        try:
            yield
        finally:
            with self._lock:
                replica.running -= 1
            self._wake_one()

    def unreachable(self, tries: int) -> PolicyUnreachable:
        states = "; ".join(f"{r.url}: {r.last_error or 'not asked'}" for r in self.replicas)
        count = f" after {tries} tries" if tries > 1 else ""
        return PolicyUnreachable(
            f"Expected an answer from a policy server, found none{count}. {states}. "
            "Start one with `stateset-agents policy serve`, or give --base-url."
        )

    async def choose(self, attempts: "_Attempts") -> Replica:
        """A healthy replica with room that did not just fail: the conversation's own, which has its prefix in the cache, or the
        one with the fewest calls. Raises PolicyUnreachable if there is none until the caller gives up."""
        while True:
            healthy = [r for r in self.replicas if r.is_healthy and r not in attempts.failed]
            if healthy:
                best = self._best(healthy, attempts.session)
                # A synchronous caller holds a thread until it is answered, and what it waits for may need that thread to end.
                if best.running < self.max_running or blocking_portal.is_here():
                    self._remember(attempts.session, best)
                    return best
                await self._room()
                continue
            due = [r for r in self.replicas if r.is_due() and r not in attempts.failed]
            for replica in due:
                await self._check(replica)
            if any(replica.is_healthy for replica in due):
                continue
            if not attempts.may_wait:
                raise self.unreachable(attempts.count)
            await asyncio.sleep(0.05)

    def _best(self, healthy: Sequence[Replica], session: str) -> Replica:
        idlest = min(healthy, key=lambda replica: replica.running)
        own = self._affinity.get(session)
        if own is None or own not in healthy or own.running > 2 * idlest.running + 8:
            return idlest
        return own

    def _remember(self, session: str, replica: Replica) -> None:
        if session:
            self._affinity[session] = replica
            self._affinity.move_to_end(session)
            while len(self._affinity) > MAX_SESSIONS:
                self._affinity.popitem(last=False)

    async def _room(self) -> None:
        """Wait until a call has ended, or check again after a while: a replica with room may have failed meanwhile."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=ROOM_SECONDS)
            if not waiter.done():
                waiter.cancel()
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # the place goes to the next in line
                self._wake_one()
            waiter.cancel()  # and nobody wakes a caller that has left
            raise

    def _wake_one(self) -> None:
        with contextlib.suppress(IndexError):  # another thread woke the last one
            while True:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    with contextlib.suppress(RuntimeError):  # its event loop has ended
                        waiter.get_loop().call_soon_threadsafe(self._wake, waiter)
                        return

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        if waiter.done():  # its caller has left meanwhile
            self._wake_one()
        else:
            waiter.set_result(None)

    async def _check(self, replica: Replica) -> None:
        """Check whether a failed replica is healthy again. It gets its versions before it gets calls."""
        replica.checking = True
        try:
            await self.transport.check_health(replica.url)
            if self.restore is not None:
                await self.restore(replica, None)
            replica.mark_healthy()
        except Unanswered as error:
            replica.record_failure(error)
        except PolicyUnreachable as error:
            message = f"{type(error).__name__}: {error}"
            replica.record_failure(Unanswered(message, refused=True))
        finally:
            replica.checking = False


class _Attempts:
    """The tries of one call: which replica is next, and when the call is given up."""

    def __init__(self, pool: ReplicaPool, session: str, retry_seconds: float) -> None:
        self.pool, self.session = pool, session
        self.count = 0
        self.failed: list[Replica] = []
        """Replicas that failed since all were tried."""
        self._deadline = time.monotonic() + retry_seconds
        self._leases_ended = pool._leases_ended
        self._crashes = 0
        self._pause = 0.05

    async def next_replica(self) -> Replica:
        """The next replica. Raises PolicyUnreachable if the call is given up."""
        if self._crashes >= MAX_CRASHES:
            raise self.pool.unreachable(self.count)
        fresh = [r for r in self.pool.replicas if r.is_healthy and r not in self.failed]
        if self.failed and not fresh and self.may_wait:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, 2.0)
            self.failed.clear()
        replica = await self.pool.choose(self)
        self.count += 1
        return replica

    @property
    def may_wait(self) -> bool:
        """Whether the call still waits for unreachable replicas."""
        return time.monotonic() < self._deadline and self._leases_ended == self.pool._leases_ended

    def record_failure(self, replica: Replica, error: Unanswered | Busy) -> None:
        self.failed.append(replica)
        if isinstance(error, Unanswered):
            self._crashes += error.crashed
            replica.record_failure(error)
        else:
            replica.last_error = str(error)


_shared: "weakref.WeakValueDictionary[tuple[tuple[str, ...], str], ReplicaPool]" = (
    weakref.WeakValueDictionary()
)
_sharing = threading.Lock()


def pool_at(base_url: str, key: str = "") -> ReplicaPool:
    """The pool of the replicas at a base URL that ends in `/v1`, or at several with commas between them. All users of the same
    URLs share one pool, as long as it is in use."""
    urls = tuple(url.strip().rstrip("/") for url in base_url.split(",") if url.strip())
    with _sharing:
        pool = _shared.get((urls, key))
        if pool is None:
            pool = _shared[urls, key] = ReplicaPool(urls, key)
        return pool
