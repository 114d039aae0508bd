"""Which scenarios a job trains on, and which it measures on."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.files import replace_text
from stateset_agents.graphs.names import GRAPHS
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.shops import shops_of
from stateset_agents.scenario import Scenario, load_scenarios
from stateset_agents.tools.scenarios.generator import intents_of, scenarios

SPLIT = "split.json"
"""The ids of a run's training scenarios, in its folder."""


def keep_split(run: Path, training: Sequence[Scenario]) -> None:
    """Keep with a run which scenarios it is trained on."""
    replace_text(run / SPLIT, json.dumps({"training": [scenario.id for scenario in training]}))


def trained_on(policy: Path | None) -> frozenset[str]:
    """The ids of the scenarios that a run was trained on; none if it kept none."""
    if policy is None:
        return frozenset()
    # The run's folder, or the adapter's inside it.
    file = next((f for f in (policy / SPLIT, policy.parent / SPLIT) if f.is_file()), None)
    return frozenset() if file is None else frozenset(json.loads(file.read_text())["training"])


def find_scenarios(
    config: JobConfig, *, only_held_out: bool = False, trained: frozenset[str] = frozenset()
) -> tuple[list[Scenario], list[Scenario]]:
    """Training and held-out scenarios: generated, or a file's. In a file, those with split development or held_out are measured
    on; without splits every fourth, or with `only_held_out` all that the measured policy was not `trained` on."""
    if config.scenarios is None:
        return _generated(config)
    every = load_scenarios(Path(config.scenarios))
    measured = [scenario.split in ("development", "held_out") for scenario in every]
    if only_held_out:
        held_out = [s for s, is_measured in zip(every, measured, strict=True) if is_measured]
        unseen = [scenario for scenario in held_out or every if scenario.id not in trained]
        if not unseen:
            raise BadInput(
                f"--scenarios: expected some that the policy was not trained on, found none among {len(held_out or every)} in "
                f"{config.scenarios!r}."
            )
        return [], unseen[: config.held_out]
    if not any(measured):
        measured = [number % 4 == 3 for number in range(len(every))]
    held_out = [s for s, is_measured in zip(every, measured, strict=True) if is_measured]
    training = [s for s, is_measured in zip(every, measured, strict=True) if not is_measured]
    if not (training and held_out):
        raise BadInput(
            f"--scenarios: expected some to train on and some to measure on, found {len(training)} and "
            f"{len(held_out)} in {config.scenarios!r}. Without splits every fourth is measured on."
        )
    return training, held_out[: config.held_out]


def _generated(config: JobConfig) -> tuple[list[Scenario], list[Scenario]]:
    if config.mcp is not None:
        raise BadInput("--mcp needs --scenarios FILE: only the bundled shop has generated ones.")
    if config.graph not in GRAPHS:
        raise BadInput(
            f"--graph {config.graph} needs --scenarios FILE: only the shop's own graphs have generated ones."
        )
    intents = intents_of(config.graph)
    shops = shops_of(config)
    endless = scenarios(seed=config.seed, split="train", intents=intents, shops=shops)
    unseen = scenarios(seed=config.held_out_seed, split="held_out", intents=intents, shops=shops)
    training = list(itertools.islice(endless, config.steps * config.groups))
    return training, list(itertools.islice(unseen, config.held_out))
