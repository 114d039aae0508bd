"""Calibration: a reward's scores compared with outcomes that the shop verified."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from stateset_agents.reward import Reward
from stateset_agents.trace import Trace

BINS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Over the traces that have a goal and could be scored."""

    traces: int
    unscored: int
    successes: int
    auc: float | None
    """Chance that a success scores above a failure; a tie counts half. None if all are successes or all are failures."""
    accuracy: float | None
    """At the threshold below; always guessing the more frequent outcome reaches `majority`."""
    threshold: float | None
    majority: float
    length_bias: float | None
    """Correlation of score and number of words among traces of one outcome: 0 for a reward that ignores length."""
    position_bias: float | None
    """Correlation of score and position in the group: 0 for a reward that ignores the order."""
    reliability: tuple[tuple[float, float, int], ...]
    """Of the scores in bins: their mean, the share of successes, how many."""


async def calibrate(reward: Reward, traces: Sequence[Trace], *, group: int = 8) -> Calibration:
    """Score traces in groups of `group` and compare with their goals. Raises ValueError where none has a goal."""
    judged = [trace for trace in traces if trace.goal_score is not None]
    if not judged:
        raise ValueError("Expected traces with a goal, found none.")
    scored: list[tuple[float, bool, int, int]] = []
    unscored = 0
    for start in range(0, len(judged), group):
        part = judged[start : start + group]
        for place, (trace, score) in enumerate(zip(part, await reward(part), strict=True)):
            goal = trace.goal_score
            if score is None or goal is None:
                unscored += 1
            else:
                scored.append((score.value, goal.success, len(trace.agent_text.split()), place))
    good = [value for value, success, _, _ in scored if success]
    bad = [value for value, success, _, _ in scored if not success]
    accuracy, threshold = _best(good, bad)
    return Calibration(
        traces=len(judged),
        unscored=unscored,
        successes=len(good),
        auc=auc(good, bad),
        accuracy=accuracy,
        threshold=threshold,
        majority=max(len(good), len(bad)) / max(1, len(scored)),
        length_bias=_within(scored, 2),
        position_bias=_within(scored, 3),
        reliability=_bins(scored),
    )


async def drift(
    first: Reward, other: Reward, traces: Sequence[Trace]
) -> tuple[float | None, float | None]:
    """How far two rewards, or two versions of a judge, differ: the correlation of their scores, and their mean difference. None
    where they have too few traces in common."""
    both = [
        (a.value, b.value)
        for a, b in zip(await first(traces), await other(traces), strict=True)
        if a is not None and b is not None
    ]
    if not both:
        return None, None
    gap = math.fsum(a - b for a, b in both) / len(both)
    return correlation([a for a, _ in both], [b for _, b in both]), gap


def auc(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """Chance that one of `good` is above one of `bad` (Mann-Whitney); a tie counts half.

    >>> auc([0.9, 0.5], [0.5, 0.1])
    0.875
    """
    if not good or not bad:
        return None
    below = sorted(bad)
    total = math.fsum(
        (bisect.bisect_left(below, score) + bisect.bisect_right(below, score)) / 2 for score in good
    )
    return total / len(good) / len(bad)


def correlation(xs: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's correlation; None if one of them does not vary."""
    if len(xs) < 2:
        return None
    a, b = math.fsum(xs) / len(xs), math.fsum(other) / len(other)
    both = math.fsum((x - a) * (y - b) for x, y in zip(xs, other, strict=True))
    spread = math.sqrt(math.fsum((x - a) ** 2 for x in xs) * math.fsum((y - b) ** 2 for y in other))
    return both / spread if spread > 1e-12 else None


def _best(good: Sequence[float], bad: Sequence[float]) -> tuple[float | None, float | None]:
    if not good or not bad:
        return None, None
    above, below = sorted(good), sorted(bad)
    every = len(good) + len(bad)

    def right(threshold: float) -> float:
        passed = len(above) - bisect.bisect_left(above, threshold)
        return (passed + bisect.bisect_left(below, threshold)) / every

    best = max(sorted({*good, *bad}), key=right)
    return right(best), best


def _within(scored: Sequence[tuple[float, bool, int, int]], column: int) -> float | None:
    """Correlation with a column among traces of one outcome, the mean of both by their number."""
    total, weight = 0.0, 0
    for outcome in (True, False):
        rows = [row for row in scored if row[1] == outcome]
        coefficient = correlation([row[0] for row in rows], [float(row[column]) for row in rows])
        if coefficient is not None:
            total, weight = total + coefficient * len(rows), weight + len(rows)
    return total / weight if weight else None


def _bins(scored: Sequence[tuple[float, bool, int, int]]) -> tuple[tuple[float, float, int], ...]:
    rows = sorted(scored, key=lambda row: row[0])
    size = max(1, math.ceil(len(rows) / BINS))
    parts: list[list[tuple[float, bool, int, int]]] = [[]]
    for row in rows:  # equal scores are in one bin
        if len(parts[-1]) >= size and row[0] != parts[-1][-1][0]:
            parts.append([])
        parts[-1].append(row)
    return tuple(
        (math.fsum(r[0] for r in part) / len(part), sum(r[1] for r in part) / len(part), len(part))
        for part in parts
        if part
    )
