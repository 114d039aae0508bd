"""What offline rewards cost: `make bench`."""

import asyncio
import itertools
import platform
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stateset_agents.graphs.mixed_quality import mixed
from stateset_agents.jobs.registry import NAMED
from stateset_agents.reward import Reward
from stateset_agents.rewards.composite import shop_reward
from stateset_agents.rewards.objectives import PRESETS, ObjectivesReward
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.trace import Trace
from stateset_agents.traces.store import TraceStore

STORED = 10_000


def longer(trace: Trace) -> Trace:
    """The trace with its conversation, or more of it, to twelve messages; words differ, so that nothing is remembered."""
    messages = list(trace.messages)
    while len(messages) < 12:
        messages.append({"role": "user", "content": f"And what of {trace.id[:6]}?"})
        messages.append(
            {"role": "assistant", "content": f"I have looked at {trace.id[6:12]}: it is the same."}
        )
    return trace.model_copy(update={"messages": tuple(messages[:12])})


async def main() -> None:
    every = itertools.islice(scenarios(seed=8, split="train", intents=ALL_INTENTS), 400)
    traces = [longer(variant.trace) async for variant in mixed(list(every), seed=8)]
    table = Table(
        "what",
        "measured",
        "wanted",
        title=f"{platform.machine()}, Python {platform.python_version()}",
    )
    rewards: dict[str, Reward] = {name: make() for name, make in NAMED.items() if name != "seed"}
    rewards["objectives"] = ObjectivesReward(PRESETS["service"])
    for reward in rewards.values():
        await reward(traces[:20])  # imports, compiled patterns
    total = 0.0
    for name, reward in rewards.items():
        began = time.process_time()
        await reward(traces)
        taken = (time.process_time() - began) / len(traces) * 1000
        total += taken
        table.add_row(name, f"{taken:.3f} ms CPU a trace", "")
    table.add_row("all offline rewards", f"{total:.2f} ms CPU a trace of 12 messages", "2 ms")
    with tempfile.TemporaryDirectory() as folder, TraceStore(Path(folder) / "traces.db") as store:
        for number in range(STORED):
            trace = traces[number % len(traces)]
            store.append(trace.model_copy(update={"id": f"{number:08x}"}), phase="p")
        store.flush()
        reward, count = shop_reward(), 0
        began = time.perf_counter()
        for trace in store.traces(phase="p"):
            (score,) = await reward([trace])
            store.grade(trace.id, score)
            count += 1
        store.flush()
        seconds = time.perf_counter() - began
    table.add_row(f"{count:,} stored traces graded again, kept", f"{seconds:.0f} s", "30 s")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
