"""Speed of the parts of a step, measured in one run: `make bench`.

Prints the machine, then ratios that hold when the machine is slow: what prefix sharing saves in the
trainer, what batching and prefix reuse save in the engine, and what an episode costs besides the model.
"""

import asyncio
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.transport import close_connections
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.scenario import Scenario
from stateset_agents.server.engine.process import launch
from stateset_agents.server.options import ServerOptions
from stateset_agents.server.supervisor import free_port, supervised
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.model import load_model
from stateset_agents.trainers.packing.batches import Batch, Sample, batches
from stateset_agents.trainers.tree_trainer import grpo_trainer
from stateset_agents.trajectory import Trajectory, trajectory

EPISODES = 48


async def episodes(url: str, every: list[Scenario], at_once: int) -> tuple[list[Trace], float]:
    policy, gate = connect(url, "policy"), asyncio.Semaphore(at_once)

    async def play(number: int, scenario: Scenario) -> Trace:
        async with gate:
            return await play_episode(scenario, policy, Sampling(version="policy", seed=number))

    began = time.perf_counter()
    traces = await asyncio.gather(*(play(n, s) for n, s in enumerate(every)))
    return list(traces), time.perf_counter() - began


async def measure(folder: Path) -> tuple[list[tuple[str, str, str]], list[Trace]]:
    every = list(itertools.islice(scenarios(seed=1, split="train"), EPISODES // 8))
    grouped = [scenario for scenario in every for _ in range(8)]
    rows = []
    began = time.process_time()
    for scenario in grouped:
        await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
    graph = (time.process_time() - began) / len(grouped)
    rows.append(("an episode of the graph without a model", f"{1000 * graph:.1f} ms CPU", ""))
    async with supervised(
        launch(str(SEED_POLICY), ServerOptions(port=free_port())), folder / "engine.log"
    ) as engine:
        url = engine.url
        await episodes(url, grouped[:8], 8)
        traces, together = await episodes(url, grouped, EPISODES)
        _, alone = await episodes(url, grouped[:8], 1)
        await close_connections()
    tokens = sum(trace.tokens_sampled for trace in traces)
    rate = len(traces) / together
    rows.append(("episodes, 48 at once", f"{rate:.1f} /s, {tokens / together:.0f} tok/s", ""))
    rows.append(
        ("episodes, one at a time", f"{8 / alone:.1f} /s", f"{rate * alone / 8:.1f}x slower")
    )
    return rows, traces


def seconds(task: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        task()
        times.append(time.process_time() - began)
    return sorted(times)[len(times) // 2]


def training(folder: Path, traces: list[Trace]) -> list[tuple[str, str, str]]:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    config = TrainConfig(algorithm="dapo")
    trainer = grpo_trainer(load_model(str(SEED_POLICY)), tokenizer, folder, config)
    group = [trajectory(trace) for trace in traces if trace.model_calls]
    samples = [
        Sample(trajectory=trace, advantages=(1.0 if n % 2 else -1.0,) * len(trace.rows))
        for n, trace in enumerate(group)
    ]
    single = [
        Sample(trajectory=Trajectory(trace_id="", rows=(row,)), advantages=(sample.advantages[0],))
        for sample in samples
        for row in sample.trajectory.rows
    ]
    shared = batches(samples, config.tokens_per_batch)
    apart = [batch for sample in single for batch in batches([sample], config.tokens_per_batch)]

    def gradient(parts: Sequence[Batch]) -> None:
        for part in parts:
            torch.autograd.backward(trainer.batch_loss(part, samples))

    once, each = seconds(lambda: gradient(shared)), seconds(lambda: gradient(apart), 1)
    nodes, plain = (sum(p.ids.size(1) for p in parts) for parts in (shared, apart))
    return [
        ("gradient of 48 episodes, prefixes shared", f"{once:.1f} s CPU, {nodes:,} positions", ""),
        ("the same, a row for each call", f"{each:.1f} s CPU, {plain:,} positions", f"{each / once:.1f}x"),
    ]  # fmt: skip


def main() -> None:
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        rows, traces = asyncio.run(measure(Path(folder)))
        rows += training(Path(folder), traces)
    table = Table(title=f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    for column in ("what", "measured", "ratio"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
