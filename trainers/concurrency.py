"""Concurrency of episodes. More episodes fill the engine's batch better, until they only wait for it, or for the graphs' own
work."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

FIRST = 16
MAX_EPISODES = 256
"""Bounds of the search."""
WORTH = 1.05
"""The least gain in tokens a second for which a doubling is kept."""


class Gate:
    """Admits episodes in order of arrival, `concurrency` at once. 0 searches the number: it doubles as long as that pays,
    measured only while the gate is full, so that waiting between steps does not count."""

    def __init__(self, concurrency: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.limit = concurrency or FIRST
        self.is_settled = concurrency > 0
        """Whether the search has ended."""
        self.running = 0
        self.rates: dict[int, float] = {}
        """Measured tokens a second, by concurrency."""
        self._clock = clock
        self._queue: deque[asyncio.Future[None]] = deque()
        self._began: float | None = None
        self._ended = 0
        self._tokens = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Callable[[int], None]]:
        """A place for one episode. Call the yielded function with the number of tokens that the episode sampled."""
        await self._enter()
        try:
            yield self._played
        finally:
            self.running -= 1
            if self.running < self.limit - 1 or not self._queue:
                self._began = None  # it runs dry: what follows is not the engine's speed
            self._let_in()

    async def _enter(self) -> None:
        if self.running < self.limit and not self._queue:
            self.running += 1
        else:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():  # it was let in, and has gone
                    self.running -= 1
                    self._let_in()
                raise
        if not self.is_settled and self.running == self.limit and self._began is None:
            self._began, self._ended, self._tokens = self._clock(), 0, 0

    def _let_in(self) -> None:
        while self._queue and self.running < self.limit:
            waiter = self._queue.popleft()
            if not waiter.done():
                self.running += 1
                waiter.set_result(None)

    def _played(self, tokens: int) -> None:
        if self.is_settled or self._began is None:
            return
        self._ended += 1
        self._tokens += tokens
        if self._ended < self.limit:
            return
        self.rates[self.limit] = self._tokens / max(1e-9, self._clock() - self._began)
        self._began = None
        half = self.rates.get(self.limit // 2, 0.0)
        if self.rates[self.limit] < WORTH * half:
            self.limit, self.is_settled = self.limit // 2, True
        elif self.limit >= MAX_EPISODES:
            self.is_settled = True
        else:
            self.limit *= 2
            self._let_in()
