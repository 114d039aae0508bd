"""How fast episodes are played on a served policy, against a plain loop on the same server; how fast versions swap; what the
prefix cache gives: `python -m benchmarks.serving --engine vllm` (the embedded engine without it).

The plain loop sends the prompts that the episodes sent, as token ids and with a seed each, and has as many tokens sampled: no
graph, no shop, no parsing. Both have so many conversations at once, each call after the one before it.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import peft
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.waiting_server import key
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.config import check_config
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.metrics import Metrics, read_metrics
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.publishing import Publisher
from stateset_agents.policy.rendering import Renderer
from stateset_agents.policy.transport import close_connections
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.scenario import Scenario
from stateset_agents.server.launch import launch_of, slots_of
from stateset_agents.server.options import ServerOptions
from stateset_agents.server.supervisor import Launch, free_port, supervised
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.trace import Trace
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.rollouts import Plan, Player

ROUNDS = 3
TOKENIZER = AutoTokenizer.from_pretrained(SEED_POLICY)
EACH = 2
"""Episodes for each that plays at once."""


def an_adapter(folder: Path, seed: int) -> Path:
    """One that changes next to nothing: the tokens stay what they were, the version is another."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    lora.save_pretrained(str(folder))
    return folder


async def driven(url: str, version: str, at_once: int) -> tuple[list[Trace], float]:
    """Episodes as training plays them: groups of 8, so many at once."""
    policy = connect(url, version).model_copy(update={"render": Renderer(TOKENIZER).prompt})
    config = TrainConfig(concurrency=at_once)
    every: list[Scenario] = list(
        itertools.islice(scenarios(seed=1, split="train"), EACH * at_once // 8)
    )
    plan = Plan(step=1, scenarios=tuple(range(len(every))), group_size=8, temperature=1.0)
    player = Player(
        lambda scenario, sampling: play_episode(scenario, policy, sampling), None, config
    )
    began = time.perf_counter()
    groups = await player.play(plan, every, {}, version)
    seconds = time.perf_counter() - began
    traces = [trace for group in groups for trace in group]
    failed = [trace.error for trace in traces if trace.status == "failed"]
    assert not failed, failed
    return traces, seconds


async def plain(url: str, version: str, traces: Sequence[Trace], at_once: int) -> float:
    """The same calls without an agent: how long they take."""
    waiting, seeds = list(traces)[::-1], itertools.count()

    async def worker(session: aiohttp.ClientSession) -> None:
        while waiting:
            for call in waiting.pop().calls:
                body = {
                    "model": version, "prompt": call.prompt_ids, "max_tokens": len(call.sampled_ids), "ignore_eos": True,
                    "temperature": 1.0, "logprobs": 0, "return_token_ids": True, "seed": next(seeds),
                }  # fmt: skip
                async with session.post(f"{url}/completions", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(at_once)))
        return time.perf_counter() - began


def tokens(traces: Sequence[Trace]) -> int:
    return sum(trace.tokens_sampled for trace in traces)


class Versions:
    """A new version for each measurement: none finds the prefixes of the one before it in the cache."""

    def __init__(self, pool: ReplicaPool, adapter: Path, folder: Path) -> None:
        self.pool, self.adapter, self.folder = pool, adapter, folder
        self.publisher = Publisher(pool)
        self.numbers = itertools.count(1)

    async def next(self) -> str:
        number = next(self.numbers)
        path = shutil.copytree(self.adapter, self.folder / f"v{number}")
        name = f"bench-v{number}"
        await self.publisher.publish(name, path)
        return name


async def swaps(url: str, versions: Versions, count: int = 7) -> list[float]:
    """Seconds from an adapter on disk to its first token, with nothing else to do."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        version = await versions.next()
        body = {
            "model": version,
            "messages": [{"role": "user", "content": "Where is my order?"}],
            "max_tokens": 4,
        }
        async for event, _ in versions.pool.stream("/chat/completions", {**body, "stream": True}):
            if any(choice["delta"].get("content") for choice in event["choices"]):
                break
        seconds.append(time.perf_counter() - began)
    return seconds


class Rows(list[tuple[str, str, str]]):
    """Shown as they come: the whole takes minutes."""

    def append(self, row: tuple[str, str, str]) -> None:
        print(": ".join(row[:2]), flush=True)
        super().append(row)


async def on_engine(engine: str, folder: Path) -> list[tuple[str, str, str]]:
    rows = Rows()
    config = check_config({"engine": engine, "concurrency": 64})
    async with supervised(
        launch_of(config, folder, ServerOptions(port=free_port(), slots=slots_of(config))),
        folder / "engine.log",
    ) as server:
        url = server.url
        servers = pool_at(url)
        versions = Versions(servers, an_adapter(folder / "adapter", 0), folder)
        await driven(url, "policy", 16)
        seconds = await swaps(url, versions)
        rows.append(
            (f"{engine}: a new version, from disk to its first token",
             f"{statistics.median(seconds):.2f} s", f"slowest of {len(seconds)}: {max(seconds):.2f} s")
        )  # fmt: skip
        for at_once in (16, 64):
            ratios, rates, hits = [], [], Metrics()
            for _ in range(ROUNDS):
                before = await read_metrics(servers)
                traces, mine = await driven(url, await versions.next(), at_once)
                hits = (await read_metrics(servers)).since(before)
                bare = await plain(url, await versions.next(), traces, at_once)
                rates.append((tokens(traces) / mine, tokens(traces) / bare))
                ratios.append(bare / mine)
            middle = statistics.median(ratios)
            rate, other = rates[ratios.index(middle)]
            rows.append(
                (f"{engine}, cores shared, {at_once} episodes at once: of the plain loop's tokens/s",
                 f"{middle:.0%}", f"{rate:.0f} of {other:.0f} tok/s; prefix cache {hits.hit_rate or 0:.0%}")
            )  # fmt: skip
            rows.append(await waited(folder, traces, at_once, at_once / other))
        await close_connections()
    return rows


async def waited(
    folder: Path, traces: Sequence[Trace], at_once: int, seconds: float
) -> tuple[str, str, str]:
    """The same where the engine has cores of its own: a server that only waits as long for a token as the engine alone takes."""
    table: dict[str, Any] = {}
    plain_post = ReplicaPool.post

    async def kept(self: ReplicaPool, path: str, body: dict[str, Any], **options: Any) -> Any:
        answer, sent = await plain_post(self, path, body, **options)
        table[key(path, body)] = answer
        return answer, sent

    async with supervised(
        launch_of(check_config({"engine": "embedded"}), folder, ServerOptions(port=free_port())),
        folder / "recorded.log",
    ) as server:
        ReplicaPool.post = kept  # type: ignore[method-assign]
        try:
            traces, _ = await driven(server.url, "policy", at_once)
        finally:
            ReplicaPool.post = plain_post  # type: ignore[method-assign]
        await close_connections()
    (folder / "table.json").write_text(json.dumps(table))
    port = free_port()
    cores = sorted(os.sched_getaffinity(0))
    pinned = ("taskset", "-c", str(cores[-1])) if shutil.which("taskset") and len(cores) > 1 else ()
    launch = Launch(
        name="the waiting server",
        command=(*pinned, sys.executable, "-m", "benchmarks.waiting_server", str(folder / "table.json"), str(port), str(seconds)),
        url=f"http://127.0.0.1:{port}/v1",
        seconds=60,
    )  # fmt: skip
    async with supervised(launch, folder / "waiting.log") as server:
        ratios = []
        for _ in range(2):
            _, mine = await driven(server.url, "policy", at_once)
            bare = await plain(server.url, "policy", traces, at_once)
            ratios.append(bare / mine)
        await close_connections()
    return (
        f"a server that only waits, {1000 * seconds:.0f} ms a token, {at_once} at once: of the plain loop's tokens/s",
        f"{statistics.median(ratios):.0%}",
        f"{tokens(traces) / mine:.0f} tok/s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="embedded", choices=("vllm", "embedded"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(on_engine(options.engine, Path(folder)))
    table = Table(title=f"--engine {options.engine}, {os.cpu_count()} cores, {platform.machine()}")
    for column in ("what", "measured", "beside it"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
