"""Speed of the shop, measured in one run: `make bench`. CPU seconds of this process, one core."""

import asyncio
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import track
from rich.table import Table

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, INTENTS, scenarios
from stateset_agents.tools.scenarios.mutants import mutants, score_acts
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS
from stateset_agents.trace import Sampling

SCENARIOS = 10_000


def median_ms(act: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.process_time()
        act()
        taken.append(time.process_time() - began)
    return statistics.median(taken) * 1000


def scenario_seconds() -> float:
    """Generated, solved by their plans on the tools, and tried with every mutant."""
    began = time.process_time()
    endless = scenarios(seed=1, split="train", intents=ALL_INTENTS)
    for scenario in track(itertools.islice(endless, SCENARIOS), "scenarios", total=SCENARIOS):
        assert score_acts(scenario, scenario.plan).success
        assert not any(score_acts(scenario, acts).success for acts in mutants(scenario).values())
    return time.process_time() - began


def tool_call_ms() -> float:
    shop = generate(1, "train").clone()
    order = shop.the("SELECT id, customer_id FROM orders")
    executor, session = Executor(shop, ALL_TOOLS), Session(customer=order["customer_id"])
    return median_ms(
        lambda: executor.propose(session, "get_order", {"order_id": order["id"]}), 2000
    )


def episode_ms() -> float:
    every = itertools.islice(scenarios(seed=2, split="train", intents=INTENTS), 60)
    plans = list(every)

    async def play() -> None:
        for scenario in plans:
            await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())

    asyncio.run(play())  # once for what is made once
    began = time.process_time()
    asyncio.run(play())
    return (time.process_time() - began) / len(plans) * 1000


def main() -> None:
    console = Console(highlight=False)
    shop = generate(1, "train")
    table = Table(box=None, title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")  # fmt: skip
    for column in ("what", "measured", "wanted"):
        table.add_column(column)
    table.add_row(
        "clone of a shop, median", f"{median_ms(lambda: shop.clone().close(), 500):.2f} ms", "1 ms"
    )
    table.add_row("tool call on SQLite, median", f"{tool_call_ms():.2f} ms", "0.5 ms")
    table.add_row(
        "episode of the service graph with the oracle", f"{episode_ms():.1f} ms CPU", "25 ms"
    )
    seconds = scenario_seconds()
    table.add_row(f"{SCENARIOS:,} scenarios made and checked", f"{seconds:.0f} s CPU", "120 s")
    console.print(table)


if __name__ == "__main__":
    main()
