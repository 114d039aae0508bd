"""A training run while its vLLM is killed, paused and cut off: `python -m benchmarks.chaos --seconds 1200`.

What has to hold: the run finishes; no sampled token is trained twice; each failure says what was expected and found; and what a
lost answer had sampled is in no trace.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.run_folder import new_run
from stateset_agents.jobs.train import train_job
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.reporting.events import Event, JobStarted
from stateset_agents.server.options import ServerOptions, VllmOptions
from stateset_agents.server.supervisor import Supervised, free_port, supervised
from stateset_agents.server.vllm import process as vllm
from stateset_agents.settings import load_settings
from stateset_agents.traces.lineage import problems
from stateset_agents.traces.store import TraceStore

DROPPED = "/v1/chat/completions"
PAUSE_SECONDS = 10


@dataclass
class Suffered:
    """What a run under chaos came to."""

    steps: int = 0
    seconds: float = 0.0
    kills: int = 0
    pauses: int = 0
    dropped: int = 0
    answers: int = 0
    """What came through."""
    statuses: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    """Calls that were sent more than once and answered in the end."""
    untyped: list[str] = field(default_factory=list)
    """Failures that do not say what was expected."""
    trained_twice: int = 0
    """Sampled tokens that more than one step learned from."""
    unproved: list[str] = field(default_factory=list)
    """What the store's certificates do not bear out."""

    def wrong(self) -> list[str]:
        wrong = [f"a failure without a type: {failure}" for failure in self.untyped]
        wrong += [f"not proved: {problem}" for problem in self.unproved]
        if self.trained_twice:
            wrong.append(f"{self.trained_twice} answers were trained on twice")
        if not (self.kills and self.pauses and self.dropped and self.retried):
            wrong.append("nothing was done to it")
        return wrong


@contextlib.asynccontextmanager
async def dropping(target: str, counts: Suffered, every: int = 10) -> AsyncIterator[str]:
    """A proxy before a server that loses every n-th answer after it was sampled."""
    port, numbers = free_port(), itertools.count(1)
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=600), auto_decompress=False
    ) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            body = await request.read()
            try:
                async with session.request(
                    request.method, target + request.path_qs, data=body,
                    headers={"content-type": request.headers.get("content-type", "")},
                ) as answer:  # fmt: skip
                    data = await answer.read()
            except aiohttp.ClientError:
                request.transport.abort()
                return web.Response()  # to nobody
            if request.path == DROPPED and answer.status == 200:
                if next(numbers) % every == 0:
                    counts.dropped += 1
                    request.transport.abort()
                    return web.Response()
                counts.answers += 1
            kind = answer.headers.get("content-type", "application/json")
            return web.Response(body=data, status=answer.status, headers={"content-type": kind})

        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{tail:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            await runner.cleanup()


def server_group(server: Supervised) -> int:
    """The process group of the server below its guard."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(children[0])


async def torment(server: Supervised, counts: Suffered, rng: random.Random, until: float) -> None:
    """Pause it, then kill it, each after it was well for some seconds; again and again, then leave it in peace."""
    while time.monotonic() < until:
        await asyncio.sleep(rng.uniform(8, 14))
        group = server_group(server)
        os.killpg(group, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)
        counts.pauses += 1
        await asyncio.sleep(rng.uniform(4, 8))
        restarts = server.restarts
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGKILL)
        counts.kills += 1
        while server.restarts == restarts and server.broken is None:
            await asyncio.sleep(0.5)
        if server.broken is not None:
            raise server.broken


async def chaos(folder: Path, seconds: float, at: Supervised | None = None) -> Suffered:
    """Train while the server suffers for `seconds`; several runs, one after the other, where one is over sooner."""
    counts, rng, began = Suffered(), random.Random(0), time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        if at is None:
            launch = vllm.launch(
                str(SEED_POLICY),
                ServerOptions(port=free_port()),
                VllmOptions(python=vllm.find_python(load_settings().vllm), folder=folder),
            )
            at = await stack.enter_async_context(
                supervised(launch, folder / "engine.log", print, most=10_000)
            )
        url = await stack.enter_async_context(dropping(at.url.removesuffix("/v1"), counts))
        # One step old episodes are trained on, so that versions are swapped while others sample.
        values: dict[str, Any] = {"base_url": url, "steps": 8, "groups": 2, "group_size": 4, "held_out": 8, "staleness": 1,
                                  "concurrency": 16, "threads": 1, "log": ()}  # fmt: skip
        for seed in itertools.count(1):
            run = new_run(folder / "runs")
            # From when a run has found its server until it ends: one that finds none says so, and does not begin.
            suffering: list[asyncio.Task[None]] = []

            def begin(event: Event, suffering: list[asyncio.Task[None]] = suffering) -> None:
                if isinstance(event, JobStarted):
                    suffering.append(asyncio.create_task(torment(at, counts, rng, began + seconds)))

            try:
                summary = await train_job(check_config({**values, "seed": seed}), run, begin)
            finally:
                for task in suffering:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
                os.killpg(server_group(at), signal.SIGCONT)
            counts.steps += summary["steps"]
            judge(run, counts)
            print(f"run {seed}, {time.monotonic() - began:.0f} s: {counts}", flush=True)
            if time.monotonic() - began >= seconds:
                break
    counts.seconds = time.monotonic() - began
    return counts


def judge(run: Path, counts: Suffered) -> None:
    """What a run's store says of it."""
    with TraceStore(run / "traces.db", create=False) as store:
        traces = list(store.traces())
        counts.unproved += list(problems(store))
        trained = store.read("SELECT response_id FROM trained")
    seen = Counter(str(trace.status) for trace in traces)
    counts.statuses = dict(Counter(counts.statuses) + seen)
    for trace in traces:
        counts.retried += sum(call.tries > 1 for call in trace.model_calls)
        if trace.status == "failed" and "Expected" not in (trace.error or ""):
            counts.untyped.append(str(trace.error))
    times = Counter(row[0] for row in trained)
    counts.trained_twice += sum(count > 1 for count in times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = asyncio.run(chaos(Path(folder), options.seconds))
    print(json.dumps(counts.__dict__, indent=2))
    if counts.wrong():
        raise SystemExit("\n".join(counts.wrong()))


if __name__ == "__main__":
    main()
