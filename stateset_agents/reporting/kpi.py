"""KPIs over stored traces: by intent, persona, tier, language, policy version; and A/B tests."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stateset_agents.evaluation import Interval, normal
from stateset_agents.rewards.objectives import OBJECTIVES
from stateset_agents.trace import Trace

KEYS: Mapping[str, Callable[[Trace], str]] = {
    "intent": lambda trace: trace.scenario.intent if trace.scenario else "",
    "version": lambda trace: trace.calls[-1].version if trace.calls else "",
    "graph": lambda trace: trace.graph,
    "status": lambda trace: trace.status,
    "persona": lambda trace: trace.segment.get("persona", ""),
    "tier": lambda trace: trace.segment.get("tier", ""),
    "locale": lambda trace: trace.segment.get("locale", ""),
}
"""Keys to group traces by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpi:
    """One objective over some traces."""

    name: str
    mean: float | None
    ci95: Interval | None
    """95 % interval of the mean (Student's t); None for fewer than two values."""
    traces: int
    """Number of traces with a value."""
    guessed: int = 0
    """Those of them whose value is a proxy."""


def bucket(thread: str, test: str, share: float = 0.5) -> str:
    """`A` or `B` of an A/B test, always the same for a thread: a hash of thread and test; `share` of all threads are B.

    >>> bucket("t1", "greeting") == bucket("t1", "greeting")
    True
    """
    drawn = int.from_bytes(hashlib.sha256(f"{test}/{thread}".encode()).digest()[:8], "big") / 2**64
    return "B" if drawn < share else "A"


_STUDENT = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09,
    2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05,
)  # fmt: skip
"""Student's t for 1 to 29 degrees of freedom, at 97.5 %."""


def _quantile(freedom: int) -> float:
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96


class Tally:
    """Running sums of objectives, so that a store of any size needs constant memory."""

    def __init__(self, names: Sequence[str] = tuple(OBJECTIVES)) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {}
        self.names = tuple(names)

    def add(self, group: str, trace: Trace) -> None:
        sums = self._sums.setdefault(
            group, {name: [0.0, 0.0, 0.0, 0.0] for name in ("traces", *self.names)}
        )
        sums["traces"][0] += 1
        if trace.status in ("failed", "interrupted"):
            return
        for name in self.names:
            value = OBJECTIVES[name].of(trace)
            if (
                value is not None
            ):  # Welford: sums of squares lose what is small beside what is large
                count, mean, squares, guessed = sums[name]
                gap = value - mean
                mean += gap / (count + 1)
                guessed += OBJECTIVES[name].guessed(trace)
                sums[name] = [count + 1, mean, squares + gap * (value - mean), guessed]

    def count(self, group: str) -> int:
        return int(self._sums[group]["traces"][0])

    @property
    def groups(self) -> list[str]:
        return sorted(self._sums)

    def kpi(self, group: str, name: str) -> Kpi:
        count, mean, squares, guessed = self._sums[group][name]
        if not count:
            return Kpi(name=name, mean=None, ci95=None, traces=0)
        ci95 = None
        if count > 1:
            reach = _quantile(int(count) - 1) * math.sqrt(squares / (count - 1) / count)
            ci95 = (mean - reach, mean + reach)
        return Kpi(name=name, mean=mean, ci95=ci95, traces=int(count), guessed=int(guessed))

    def difference(
        self, name: str, first: str = "A", other: str = "B"
    ) -> tuple[float, Interval] | None:
        """Difference of two means, with its 95 % interval (Welch, normal); None without values."""
        a, b = self.kpi(first, name), self.kpi(other, name)
        if a.mean is None or b.mean is None or a.ci95 is None or b.ci95 is None:
            return None
        reach = math.hypot((a.ci95[1] - a.ci95[0]) / 2, (b.ci95[1] - b.ci95[0]) / 2)
        gap = b.mean - a.mean
        return gap, (gap - reach, gap + reach)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A policy's objectives, with the intervals of their means."""

    name: str
    means: tuple[float, ...]
    reaches: tuple[float, ...]
    dominated: bool = False
    """Whether another is at least as good in every objective, and better in one."""


def point(name: str, traces: Iterable[Trace], objectives: Sequence[str]) -> Point:
    """Raises ValueError if no trace has all of the objectives."""
    rows = []
    for trace in traces:
        values = [OBJECTIVES[objective].of(trace) for objective in objectives]
        if trace.status not in ("failed", "interrupted") and None not in values:
            rows.append([value for value in values if value is not None])
    if not rows:
        raise ValueError(
            f"Expected traces that tell {', '.join(objectives)}, found none in {name}."
        )
    columns = list(zip(*rows, strict=True))
    intervals = [normal(column) for column in columns]
    return Point(
        name=name,
        means=tuple(math.fsum(column) / len(column) for column in columns),
        reaches=tuple(0.0 if i is None else (i[1] - i[0]) / 2 for i in intervals),
    )


def front(points: Sequence[Point]) -> list[Point]:
    """The points, with a mark on dominated ones."""

    def beats(point: Point, other: Point) -> bool:
        pairs = list(zip(point.means, other.means, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [
        Point(
            name=p.name,
            means=p.means,
            reaches=p.reaches,
            dominated=any(beats(q, p) for q in points),
        )
        for p in points
    ]
