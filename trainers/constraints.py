"""Limits: what an episode may do no more often than in a share of cases, held by a multiplier each.

value = reward - sum of multiplier x (what the episode did)      multiplier <- max(0, multiplier + rate x (share - limit))

A weight has to be guessed; a multiplier rises until the limit holds, and falls to 0 where it holds by itself (constrained policy
optimisation by a Lagrangian: Altman 1999; Ray, Achiam and Amodei 2019, section 5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stateset_agents.trace import Trace

Cost = Callable[[Trace], float | None]
"""From 0 to 1; None where a trace does not tell."""

COSTS: dict[str, Cost] = {
    "violations": lambda trace: float(bool(trace.violations)),
    "truncated": lambda trace: float(trace.status == "truncated"),
    "escalations": lambda trace: float(trace.books.get("escalations", 0.0) > 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most `share` of the episodes, on average."""

    name: str
    share: float
    cost: Cost


class Multipliers:
    """One for each limit, from 0."""

    def __init__(self, limits: Sequence[Limit], rate: float) -> None:
        self.limits, self.rate = tuple(limits), rate
        self.values = {limit.name: 0.0 for limit in limits}

    def price(self, trace: Trace) -> float:
        """What an episode pays for what it did."""
        return sum(self.values[limit.name] * (limit.cost(trace) or 0.0) for limit in self.limits)

    def update(self, traces: Sequence[Trace]) -> dict[str, float]:
        """Move every multiplier by what the episodes of a step did; returns the share of each."""
        shares = {}
        for limit in self.limits:
            costs = [cost for trace in traces if (cost := limit.cost(trace)) is not None]
            if costs:
                shares[limit.name] = sum(costs) / len(costs)
                moved = self.values[limit.name] + self.rate * (shares[limit.name] - limit.share)
                self.values[limit.name] = max(0.0, moved)
        return shares
