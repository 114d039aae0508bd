"""Evaluation: success with its uncertainty, before and after, on the same scenarios."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from stateset_agents.plain import Frozen
from stateset_agents.reward import Score
from stateset_agents.trace import Trace

Interval = tuple[float, float]
ENDED_BADLY = ("failed", "waiting", "truncated")


def wilson(successes: int, trials: int, z: float = 1.96) -> Interval:
    """The 95 % score interval of a share (Wilson 1927)."""
    if trials == 0:
        return (0.0, 1.0)
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = (
        z
        * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
        / (1 + z * z / trials)
    )
    return (max(0.0, middle - reach), min(1.0, middle + reach))


def paired_gain(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, draws: int = 4000
) -> tuple[float, Interval]:
    """Mean difference over the same scenarios, with a 95 % percentile bootstrap interval."""
    if len(before) != len(after) or not before:
        raise ValueError(f"Expected pairs, found {len(before)} before and {len(after)} after.")
    gaps = [b - a for a, b in zip(before, after, strict=True)]
    rng = random.Random(seed)
    means = sorted(math.fsum(rng.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
    return math.fsum(gaps) / len(gaps), (low, high)


def shown(interval: Sequence[float] | None, style: str = ".2f") -> str:
    """`0.30 to 0.45`."""
    if interval is None:
        return "no interval"
    return f"{interval[0]:{style}} to {interval[1]:{style}}"


class Measurement(Frozen):
    """One policy version on one set of scenarios. Truncated episodes are no successes; failed ones are counted apart and are no
    outcome. If any scenario has no goal (in a custom graph), all are measured by their reward instead."""

    version: str
    temperature: float
    measured_by: Literal["success", "reward"]
    outcomes: tuple[float | None, ...]
    """1 or 0 for each scenario in order, without goals the reward; None if the episode failed or has no score."""
    success: float | None
    """The mean of the known outcomes; None if there are none."""
    ci95: Interval | None
    success_by_intent: dict[str, float]
    mean_reward: float | None
    """Over the episodes that could be scored."""
    unscored: int
    violations: int
    """Episodes with at least one attempt that a rule denied."""
    turns: float
    failed: int
    truncated: int
    silent: int = 0
    """Episodes that were cut off before the policy had said a token: the context was full from the start."""
    waiting: int = 0
    """Episodes that ended waiting for an answer which the customer could not give."""
    offered: int = 0
    """Episodes in which the policy was given tools."""
    used: int = 0
    """Episodes in which it called one."""
    errors: dict[str, int] = Field(default_factory=dict)
    """Why episodes failed, waited or were cut off, the most frequent reasons first, with their numbers."""

    compared: bool = False
    """The reward compares several episodes of a scenario, so that these, one of each, have no score."""

    @property
    def problem(self) -> str | None:
        """Why this measures nothing; None if it does."""
        count = len(self.outcomes)
        reason = next(iter(self.errors), "")
        if count and self.failed + self.waiting + self.silent == count:
            kind = "failed" if self.failed else "waited for an answer"
            if self.silent > self.failed + self.waiting:
                kind = "were cut off before the policy said anything"
            return f"Expected episodes that end, found that all {count} {kind}: {reason.rstrip(chr(46))}."
        if self.success is None and not self.compared:
            because = f" {self.failed} of them failed: {reason}." if self.failed else ""
            return (
                f"Expected episodes that can be scored, found none among {count}: their scenarios have no goal, and the reward "
                f"gives no score.{because} Give the scenarios goals, or name a reward of your own (--reward module:attribute)."
            )
        return None if self.success else self.no_tools

    @property
    def no_tools(self) -> str | None:
        """That the policy never called a tool though it always could; None if that is not so."""
        count = len(self.outcomes)
        if not count or self.offered < count or self.used:
            return None
        return (
            f"Expected a policy that calls tools, found no call in {count} episodes, though all offered some. Its chat template "
            "may not show tools to the model, the engine may not read its calls (--tool-parser), or it was never taught to call."
        )


def measure(
    traces: Sequence[Trace], scores: Sequence[Score | None], *, version: str, temperature: float, compared: bool = False
) -> Measurement:  # fmt: skip
    """Sum up an evaluation."""
    goals = [trace.goal_score for trace in traces]
    by_goal = all(goal is not None for goal in goals)
    outcomes: list[float | None] = [
        None if trace.status == "failed"
        else float(goal.success) if by_goal and goal
        else score.value if score else None
        for trace, goal, score in zip(traces, goals, scores, strict=True)
    ]  # fmt: skip
    by_intent: dict[str, list[float]] = {}
    for trace, outcome in zip(traces, outcomes, strict=True):
        if outcome is not None:
            by_intent.setdefault(trace.scenario.intent if trace.scenario else "", []).append(
                outcome
            )
    known = [outcome for outcome in outcomes if outcome is not None]
    values = [score.value for score in scores if score is not None]
    mean = math.fsum(known) / len(known) if known else None
    errors = Counter(trace.error for trace in traces if trace.error and trace.status in ENDED_BADLY)
    return Measurement(
        version=version,
        temperature=temperature,
        measured_by="success" if by_goal else "reward",
        outcomes=tuple(outcomes),
        success=mean,
        ci95=wilson(int(sum(known)), len(known)) if by_goal and known else normal(known),
        success_by_intent={k: sum(v) / len(v) for k, v in sorted(by_intent.items())},
        mean_reward=math.fsum(values) / len(values) if values else None,
        unscored=sum(score is None for score in scores),
        violations=sum(bool(trace.violations) for trace in traces),
        turns=sum(trace.turns for trace in traces) / max(1, len(traces)),
        failed=sum(trace.status == "failed" for trace in traces),
        truncated=sum(trace.status == "truncated" for trace in traces),
        silent=sum(t.status == "truncated" and t.error is not None and not t.calls for t in traces),
        waiting=sum(trace.status == "waiting" for trace in traces),
        offered=sum(trace.offers_tools for trace in traces),
        used=sum(bool(trace.tool_calls) for trace in traces),
        errors=dict(errors.most_common(5)),
        compared=compared,
    )


def normal(values: Sequence[float]) -> Interval | None:
    """The 95 % normal interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return (mean - 1.96 * spread, mean + 1.96 * spread)
