"""A warm start: traces are imitated before the first episode."""

import itertools
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.graphs.names import GRAPHS
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import PolicyServer
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.weight_files import model_path
from stateset_agents.reporting.events import Report, WarmStarted
from stateset_agents.reward import Reward
from stateset_agents.tools.scenarios.generator import intents_of, scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.dataset import LEARNED_FROM, OfflineDataset
from stateset_agents.traces.store import TraceStore


def check_warm_start(config: JobConfig) -> None:
    """Raises BadInput if the traces to imitate do not exist."""
    if config.warm_start not in (None, "oracle"):
        TraceStore(str(config.warm_start), create=False).close()


async def warm_start(
    config: JobConfig, run: Path, tokenizer: Any, reward: Reward, server: PolicyServer, report: Report
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
            "sft", base=model_path(config.model), tokenizer=tokenizer, traces=traces, reward=reward,
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
    if config.graph not in GRAPHS:
        raise BadInput(
            "--warm-start oracle: only the shop's own graphs have plans, name a store instead."
        )
    endless = scenarios(seed=config.seed + 1_000, split="train", intents=intents_of(config.graph))
    return [
        await play_episode(s, Oracle(plan=s.plan), Sampling(), graph=config.graph, texts=True)
        for s in itertools.islice(endless, config.warm_traces)
    ]
