"""The summary of a training run: success before and after, tokens, time and memory."""

import resource
import sys
from dataclasses import dataclass
from typing import Any

from stateset_agents.evaluation import Measurement, paired_gain
from stateset_agents.jobs.config import JobConfig
from stateset_agents.trainers.step_log import StepLog


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The held-out scenarios before and after training, sampled and greedy."""

    before: Measurement
    greedy_before: Measurement
    after: Measurement
    greedy_after: Measurement


def summarise(
    config: JobConfig, measured: Measurements, log: list[StepLog], seconds: float
) -> dict[str, Any]:
    """The values of `summary.json`."""
    before, after = measured.before, measured.after
    pairs = _pairs(before, after)
    gain, gain_ci95 = paired_gain(*pairs) if pairs[0] else (None, None)
    return {
        "graph": config.graph,
        "problem": None,
        "seed": config.seed,
        "steps": len(log),
        "algorithm": config.algorithm,
        "group_size": config.group_size,
        "episodes_trained": sum(line.episodes for line in log),
        "held_out": len(before.outcomes),
        "measured_by": before.measured_by,
        "success_before": before.success,
        "success_after": after.success,
        "ci95_before": before.ci95,
        "ci95_after": after.ci95,
        "gain": gain,
        "gain_ci95": gain_ci95,
        "greedy_before": measured.greedy_before.success,
        "greedy_after": measured.greedy_after.success,
        "success_by_intent": {
            intent: {"before": success, "after": after.success_by_intent[intent]}
            for intent, success in before.success_by_intent.items()
            if intent in after.success_by_intent
        },
        "mean_reward_before": before.mean_reward,
        "mean_reward_after": after.mean_reward,
        "violations_before": before.violations,
        "violations_after": after.violations,
        "turns_before": before.turns,
        "turns_after": after.turns,
        "seconds_total": seconds,
        "seconds_rollout": sum(line.seconds_rollout for line in log),
        "seconds_train": sum(line.seconds_train for line in log),
        "tokens_sampled": sum(line.tokens_sampled for line in log),
        "tokens_trained": sum(line.tokens_trained for line in log),
        "positions_forwarded": sum(line.positions_forwarded for line in log),
        "positions_in_rows": sum(line.positions_in_rows for line in log),
        "policy_versions": len(log) + 1,
        "changes": [f"step {line.step}: {change}" for line in log for change in line.changes],
        "limits": config.limits,
        "torch_threads": config.threads,
        "peak_rss": peak_rss(),
    }


def peak_rss() -> dict[str, int]:
    """The most memory that this process had, and the largest of its ended children (an engine), in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    who = {"trainer": resource.RUSAGE_SELF, "engine": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(which).ru_maxrss * unit for name, which in who.items()}


def _pairs(before: Measurement, after: Measurement) -> tuple[list[float], list[float]]:
    """Outcomes of the scenarios that could be measured both times."""
    both = [
        (a, b)
        for a, b in zip(before.outcomes, after.outcomes, strict=True)
        if a is not None and b is not None
    ]
    return [a for a, _ in both], [b for _, b in both]
