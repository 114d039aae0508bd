"""A policy server as a child process: started, watched, restarted when it dies, and ended with its parent."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from stateset_agents.errors import BadInput, PolicyUnreachable, StatesetError

PARENT_GUARD = Path(__file__).with_name("parent_guard.py")
RESTARTS = 5
"""Restarts in a row before a server is given up."""
LOOKS = 6
"""Health checks in a row without an answer after which a server counts as hung."""
SOUND_SECONDS = 600
"""After this time, in seconds, restarts are counted from 0 again."""

Say = Callable[[str], None]
"""Called with a sentence for each event: starting, ready, died, restarting."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start a policy server, where it answers, and how to explain its failure."""

    name: str
    """A name for messages: `vLLM`, `the engine`."""
    command: tuple[str, ...]
    url: str
    """Ends in `/v1`."""
    seconds: float
    """Seconds until it must be healthy."""
    silent_seconds: float = 60.0
    """Seconds without health until a running server is restarted. A pause counts as health."""
    environment: Mapping[str, str] = field(default_factory=dict)
    explain: Callable[[int, list[str]], StatesetError | None] = lambda code, lines: None
    """Makes an error from an exit code and the last lines of the log, if the cause is known."""


class Supervised:
    """A running server at `url`."""

    def __init__(self, launch: Launch, log: Path, say: Say, most: int | None = None) -> None:
        self.launch, self.log, self.say = launch, log, say
        self.most = RESTARTS if most is None else most
        self.url = launch.url
        self.restarts = 0
        """Number of restarts."""
        self.broken: StatesetError | None = None
        """Why it was given up."""
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self._begin = 0

    @property
    def pid(self) -> int:
        """Process id of the guard that keeps the server."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Wait until it is healthy. Raises the error that `explain` makes, or PolicyUnreachable with its last lines."""
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(PARENT_GUARD), *self.launch.command,
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
                env={**os.environ, **self.launch.environment},
            )  # fmt: skip
        began = reported = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while (now := time.monotonic()) < began + self.launch.seconds:
                if self._process.returncode is not None:
                    raise self._ended()
                if await self._healthy(session, 5):
                    return
                if now - reported >= 2:
                    reported = now
                    self.say(f"{self.launch.name} is starting ({now - began:.0f} s)")
                await asyncio.sleep(0.1)
        await self._end()
        raise PolicyUnreachable(
            f"Expected {self.launch.name} to be healthy within {self.launch.seconds:.0f} s, found that it was not. "
            f"Its last lines:\n{self.last_lines()}"
        )

    async def _healthy(self, session: aiohttp.ClientSession, seconds: float) -> bool:
        timeout = aiohttp.ClientTimeout(total=seconds)
        root = self.url.removesuffix("/v1")
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with session.get(f"{root}/health", timeout=timeout) as answer:
                return answer.status == 200
        return False

    async def _until_gone(self) -> PolicyUnreachable | None:
        """Wait until it dies. A hung server is ended; returns the reason. Checks are counted instead of seconds, because after
        a suspended machine or parent the server is still healthy."""
        assert self._process is not None
        pause, in_vain = self.launch.silent_seconds / (2 * LOOKS), 0  # a look may take as long
        async with aiohttp.ClientSession() as session:
            while in_vain < LOOKS:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), pause)
                    return None
                in_vain = 0 if await self._healthy(session, pause) else in_vain + 1
        error = PolicyUnreachable(
            f"Expected {self.launch.name} to answer /health, found that it lives and did not for {self.launch.silent_seconds:g} s "
            "and more."
        )
        await self._end()
        return error

    async def watch(self) -> None:
        """Restart it whenever it dies or hangs, with growing delays."""
        failures = 0
        while True:
            assert self._process is not None
            began = time.monotonic()
            hung = await self._until_gone()
            if self._ending:
                return
            error: StatesetError = hung or self._ended()
            failures = 0 if time.monotonic() - began > SOUND_SECONDS else failures
            while True:
                failures += 1
                if failures > self.most:
                    self.broken = error
                    self.say(f"{self.launch.name} died {failures} times and is given up: {error}")
                    return
                pause = min(30.0, 0.5 * 2.0 ** (failures - 1))
                self.say(
                    f"{self.launch.name} {'hung' if hung else 'died'} ({_first(error)}); starting again in {pause:g} s"
                )
                await asyncio.sleep(pause)
                try:
                    await self.start()
                except StatesetError as again:
                    error, hung = again, None
                    continue
                self.restarts += 1
                self.say(f"{self.launch.name} is back")
                break

    async def stop(self) -> None:
        """End it for good."""
        self._ending = True
        await self._end()

    async def _end(self) -> None:
        """Ask it to end, then kill it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the guard hears it, and ends all that belongs to the server
        try:
            await asyncio.wait_for(process.wait(), 25)
        except TimeoutError:
            process.kill()
            await process.wait()

    def last_lines(self, count: int = 12) -> str:
        return "\n".join(self._lines()[-count:])

    def _lines(self) -> list[str]:
        """Its output since the last start."""
        with self.log.open("rb") as opened:
            opened.seek(self._begin)
            return opened.read().decode(errors="replace").strip().splitlines() or ["no output"]

    def _ended(self) -> StatesetError:
        assert self._process is not None
        code, lines = self._process.returncode or 0, self._lines()
        return self.launch.explain(code, lines) or PolicyUnreachable(
            f"Expected {self.launch.name} to run, found that it ended with {code}. All it wrote is in {self.log}; the end of it:\n"
            + "\n".join(lines[-12:])
        )


def _first(error: StatesetError) -> str:
    return str(error).splitlines()[0][:160]


@contextlib.asynccontextmanager
async def supervised(
    launch: Launch, log: Path, say: Say = lambda message: None, most: int | None = None
) -> AsyncIterator[Supervised]:
    """Run a server while the block runs, and start it again when it dies, `most` times in a row (RESTARTS). Raises BadInput or
    PolicyUnreachable if it cannot start."""
    server = Supervised(launch, log, say, most)
    watching: asyncio.Task[None] | None = None
    try:
        await server.start()
        watching = asyncio.create_task(server.watch())
        yield server
    finally:
        server._ending = True
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await server.stop()


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> None:
    """Raises BadInput if a port is already in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(
                f"Expected port {port} on {host} to be free, found: {error.strerror}. Give --port."
            ) from None
