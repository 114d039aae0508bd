"""Limits: the share of episodes that may do something, each enforced by a multiplier.

value = reward - sum of multiplier x (what the episode did)      multiplier <- max(0, multiplier + rate x (share - limit))

A weight has to be guessed; a multiplier rises until the limit holds, and falls to 0 if it holds without it (constrained policy
optimisation by a Lagrangian: Altman 1999; Ray, Achiam and Amodei 2019, section 5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stateset_agents.trace import Trace

Cost = Callable[[Trace], float | None]
"""From 0 to 1; None if a trace has no data for it."""

COSTS: dict[str, Cost] = {
    "violations": lambda trace: float(bool(trace.violations)),
    "truncated": lambda trace: float(trace.status == "truncated"),
    "escalations": lambda trace: float(trace.books.get("escalations", 0.0) > 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The cost may be at most `share` on average."""

    name: str
    share: float
    cost: Cost


class Multipliers:
    """The multipliers, one for each limit, starting at 0."""

    def __init__(self, limits: Sequence[Limit], rate: float) -> None:
        self.limits, self.rate = tuple(limits), rate
        self.values = {limit.name: 0.0 for limit in limits}

    def price(self, trace: Trace) -> float:
        """An episode's penalty."""
        return sum(self.values[limit.name] * (limit.cost(trace) or 0.0) for limit in self.limits)

    def update(self, traces: Sequence[Trace]) -> dict[str, float]:
        """Update every multiplier with the episodes of a step; returns the measured shares."""
        shares = {}
        for limit in self.limits:
            costs = [cost for trace in traces if (cost := limit.cost(trace)) is not None]
            if costs:
                shares[limit.name] = sum(costs) / len(costs)
                moved = self.values[limit.name] + self.rate * (shares[limit.name] - limit.share)
                self.values[limit.name] = max(0.0, moved)
        return shares
