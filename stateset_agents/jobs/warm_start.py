"""A warm start: traces are imitated before the first episode."""

import itertools
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import PolicyServer
from stateset_agents.jobs.registry import custom_graph
from stateset_agents.jobs.scenario_sets import find_scenarios
from stateset_agents.jobs.shops import shops_of
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.rendering import Renderer
from stateset_agents.policy.weight_files import model_path
from stateset_agents.reporting.events import Report, WarmStarted
from stateset_agents.reward import Reward
from stateset_agents.scenario import Scenario
from stateset_agents.tools.scenarios.generator import intents_of, scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.dataset import LEARNED_FROM, OfflineDataset
from stateset_agents.traces.store import TraceStore


def check_warm_start(config: JobConfig) -> None:
    """Raises BadInput if the traces to imitate do not exist, or there are no plans to play."""
    if config.warm_start == "oracle" and not config.bundled and config.scenarios:
        _plans_of(config)
    if config.warm_start not in (None, "oracle"):
        TraceStore(str(config.warm_start), create=False).close()


async def warm_start(
    config: JobConfig, run: Path, renderer: Renderer, reward: Reward, server: PolicyServer, report: Report
) -> tuple[Path | None, str]:  # fmt: skip
    """Imitate what the config names, once, and publish the result. Returns its weights, and the name they are served under."""
    if config.warm_start is None:
        return None, server.name
    from stateset_agents.trainers.imitation import imitate
    from stateset_agents.trainers.learner import version

    folder = run / "warm"
    weights, done = folder / "adapter-trained", folder / "done"
    if not done.is_file():
        traces = await warm_traces(config)
        report(WarmStarted(len(traces)))
        folder.mkdir(exist_ok=True)
        await imitate(
            "sft", base=model_path(config.model), renderer=renderer, traces=traces, reward=reward,
            run=folder, config=config, report=lambda line: None,
        )  # fmt: skip
        done.touch()
    await server.publisher.publish(version(run, 0), weights)
    return weights, version(run, 0)


async def warm_traces(config: JobConfig) -> list[Trace]:
    """The oracle's traces, on training scenarios with separate seeds, or a store's traces."""
    if config.warm_start != "oracle":
        with TraceStore(str(config.warm_start), create=False) as store:
            dataset = OfflineDataset(list(store.traces(where=LEARNED_FROM)))
            return dataset.ended[: config.warm_traces]
    if not config.bundled:
        return await _planned(config)
    shops = shops_of(config)
    endless = scenarios(
        seed=config.seed + 1_000, split="train", intents=intents_of(config.graph), shops=shops
    )
    return [
        await play_episode(
            s, Oracle(plan=s.plan), Sampling(), graph=config.graph, shops=shops, texts=True
        )
        for s in itertools.islice(endless, config.warm_traces)
    ]


def _plans_of(config: JobConfig) -> list[Scenario]:
    """The training scenarios of a file that have a plan. Raises BadInput if there are none."""
    planned = [scenario for scenario in find_scenarios(config)[0] if scenario.plan]
    if not planned:
        raise BadInput(
            f"--warm-start oracle: expected training scenarios with a plan in {config.scenarios!r}, found none. Name a store instead."
        )
    return planned


async def _planned(config: JobConfig) -> list[Trace]:
    """The plans of a file's scenarios, played through a graph of your own: those that came to their end."""
    graph = custom_graph(config)
    traces = [
        await graph.play_episode(s, Oracle(plan=s.plan), Sampling(), texts=True)
        for s in _plans_of(config)[: config.warm_traces]
    ]
    played = [trace for trace in traces if trace.status == "completed"]
    if not played:
        raise BadInput(
            f"--warm-start oracle: expected plans that can be played, found none among {len(traces)}, the first ended with: "
            f"{traces[0].status}, {traces[0].error}"
        )
    return played
