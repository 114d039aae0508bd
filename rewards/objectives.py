"""Business objectives: the value of a trace to the shop, by definition, and combinations of objectives.

    ObjectivesReward({"gross_margin": 0.5, "csat": 0.5})                    # a weighted sum of what each comes to
    ObjectivesReward(("csat", "gross_margin"), how="lexicographic")         # margin only where CSAT ties
    ObjectivesReward({"csat": 1.0}, limits={"refund_leakage": 0.0})         # a limit that may not be broken

They read the trace's `books` (what the run did to the shop, in minor units), its goal, calls and feedback. An objective without
data is None, and so is the whole: half a score would favour what is hard to score.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stateset_agents.errors import BadInput
from stateset_agents.reward import Declaration, Score, checked_weight, scorable
from stateset_agents.rewards.evidence import guesses
from stateset_agents.trace import Trace

How = Literal["sum", "lexicographic", "gdpo"]
FREE_TURNS = 2
"""Customer turns without an effect on satisfaction."""
SLA = 2.0
"""Seconds of a model call that a customer accepts."""
TOKEN = 0.002
"""Cost of a sampled token, in minor units."""
PERSON = 400.0
"""Cost of a hand-off to a person, in minor units."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A number of a trace, in its own unit; more is better."""

    name: str
    unit: str
    scale: float
    """The amount that counts as much as 1 of another objective."""
    meaning: str
    of: Callable[[Trace], float | None]
    counts: bool = False
    """Whether its value is minus an amount, of which less is better: reports show the amount."""
    guessed: Callable[[Trace], bool] = lambda trace: False
    """Whether its value for a trace is a proxy, since nobody was asked."""


def _book(name: str) -> Callable[[Trace], float | None]:
    return lambda trace: trace.books.get(name)


def _resolved(trace: Trace) -> float | None:
    values = [item.value for item in trace.feedback if item.key == "resolved"]
    if values:
        return float(values[-1] > 0)
    goal = trace.goal_score
    if goal is None or trace.status == "waiting":
        return None
    return float(goal.success and not guesses(trace))


def _first_contact(trace: Trace) -> float | None:
    resolved = _resolved(trace)
    if resolved is None:
        return None
    return resolved * float(not trace.books.get("escalations"))


def _csat(trace: Trace) -> float | None:
    """The customer's feedback (1 to 5) if there is some; else how much of the request was done and answered, and how long it
    took."""
    values = [item.value for item in trace.feedback if item.key == "csat"]
    if values:
        return min(1.0, max(0.0, (values[-1] - 1) / 4))
    goal = trace.goal_score
    if goal is None or trace.status == "waiting":
        return None
    if guesses(trace):
        return 0.0
    got = 1.0 if goal.success else 0.7 * goal.change_f1 * goal.facts_said
    return max(0.0, got - 0.05 * max(0, trace.turns - FREE_TURNS))


def _nobody_said(key: str) -> Callable[[Trace], bool]:
    return lambda trace: all(item.key != key for item in trace.feedback)


def _margin(trace: Trace) -> float | None:
    amounts = [trace.books.get(name) for name in ("revenue", "cost_of_goods", "refunded")]
    if None in amounts:
        return None
    revenue, goods, refunded = (float(value or 0.0) for value in amounts)
    return revenue - goods - refunded


def _order_value(trace: Trace) -> float | None:
    orders, revenue = trace.books.get("orders"), trace.books.get("revenue")
    return None if not orders or revenue is None else revenue / orders


def _attached(trace: Trace) -> float | None:
    orders, lines = trace.books.get("orders"), trace.books.get("lines")
    return None if not orders or lines is None else (lines - orders) / orders


def _cost(trace: Trace) -> float | None:
    if not trace.model_calls or "escalations" not in trace.books:
        return None
    return -(TOKEN * trace.tokens_in_all + PERSON * trace.books["escalations"])


def _fraud(trace: Trace) -> float | None:
    missed, wrongly = trace.books.get("fraud_missed"), trace.books.get("held_wrongly")
    return None if missed is None or wrongly is None else -(5.0 * missed + wrongly)


def _in_time(trace: Trace) -> float | None:
    taken = [call.seconds for call in trace.calls if call.seconds > 0]
    return sum(seconds <= SLA for seconds in taken) / len(taken) if taken else None


def _lifetime(trace: Trace) -> float | None:
    """Margin now, and the expected margin of a satisfied customer's return."""
    margin, csat = _margin(trace), _csat(trace)
    return None if margin is None or csat is None else margin + 5000.0 * (csat - 0.5)


def _negative(of: Callable[[Trace], float | None]) -> Callable[[Trace], float | None]:
    def less(trace: Trace) -> float | None:
        value = of(trace)
        return None if value is None else -value

    return less


OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("first_contact", "share", 1.0, "resolved, and not handed to a person", _first_contact, guessed=_nobody_said("resolved")),
        Objective("csat", "0 to 1", 1.0, "what the customer said of it, or a proxy", _csat, guessed=_nobody_said("csat")),
        Objective("handling_time", "seconds", 60.0, "minus how long it took", lambda t: -t.seconds if t.seconds else None, counts=True),
        Objective("order_value", "minor units", 10_000.0, "revenue an order (AOV)", _order_value),
        Objective("attach_rate", "lines", 1.0, "further lines an order", _attached),
        Objective("gross_margin", "minor units", 10_000.0, "revenue less goods and refunds", _margin),
        Objective("refund_leakage", "minor units", 5_000.0, "minus refunds that were not owed", _negative(_book("leaked")), counts=True),
        Objective("cost_to_serve", "minor units", 500.0, "minus tokens and people", _cost, counts=True),
        Objective("sla", "share", 1.0, "model calls in time", _in_time),
        Objective("fraud", "orders", 1.0, "minus missed fraud (5) and false alarms (1)", _fraud, counts=True),
        Objective("revenue", "minor units", 10_000.0, "what new orders bring", _book("revenue")),
        Objective("conversion", "share", 1.0, "an order was placed", lambda t: None if "orders" not in t.books else float(t.books["orders"] > 0)),
        Objective("lifetime_value", "minor units", 10_000.0, "margin, and the worth of coming back", _lifetime, guessed=_nobody_said("csat")),
        Objective("inventory_age", "item days", 500.0, "how old what was sold had grown", _book("aged_days")),
        Objective("discount", "minor units", 5_000.0, "minus what was taken off prices", _negative(_book("discounted")), counts=True),
    )
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, float]] = {
    "service": {"csat": 0.5, "first_contact": 0.3, "cost_to_serve": 0.1, "refund_leakage": 0.1},
    "sales": {"gross_margin": 0.4, "csat": 0.3, "conversion": 0.2, "cost_to_serve": 0.1},
    "returns": {"csat": 0.5, "refund_leakage": 0.4, "cost_to_serve": 0.1},
    "fulfilment": {"csat": 0.7, "first_contact": 0.2, "cost_to_serve": 0.1},
    "pricing": {"first_contact": 0.6, "csat": 0.3, "cost_to_serve": 0.1},
    "risk": {"fraud": 0.7, "first_contact": 0.2, "cost_to_serve": 0.1},
}
"""Suggested weights for each agent."""


class ObjectivesReward:
    """Several objectives as one number; the parts hold each in its own unit.

    `sum`: weights times value over scale. `gdpo`: each normalised within the group by its own mean and deviation before it
    is weighted, so that none drowns another (GDPO, arXiv 2601.05242, eq. 4-6). `lexicographic`: the place in the group, by the
    first objective, then the next; from 0 to 1. `limits` are least values: what falls below one is
    below everything in its group that keeps them, by its shortfall over the scale and at least 1, whatever else was reached.
    """

    name = "objectives"

    def __init__(
        self, weights: Mapping[str, float] | Sequence[str], *, how: How = "sum",
        limits: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        given = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0)
        self.limits = dict(limits or {})
        unknown = sorted({*given, *self.limits} - OBJECTIVES.keys())
        if unknown or not given:
            raise BadInput(
                f"objectives: expected some of {', '.join(OBJECTIVES)}, found "
                f"{unknown[0] if unknown else 'none'!r}."
            )
        self.weights = {name: checked_weight(weight, name) for name, weight in given.items()}
        self.how = how
        self.declaration = Declaration(
            version="1",
            reads=("books", "scenario", "feedback", "messages", "model_calls"),
            compares=how != "sum" or bool(self.limits),
        )

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        every = [self._values(trace) for trace in traces]
        known = [values for values in every if values is not None]
        totals = self._combined(known)
        short = [self._shortfall(values) for values in known]
        least = min((t for t, gap in zip(totals, short, strict=True) if not gap), default=0.0)
        combined = iter(
            least - max(1.0, gap) if gap else total
            for total, gap in zip(totals, short, strict=True)
        )
        return [None if v is None else Score(value=next(combined), parts=v) for v in every]

    def _values(self, trace: Trace) -> dict[str, float] | None:
        if not scorable(trace):
            return None
        values = {name: OBJECTIVES[name].of(trace) for name in {**self.weights, **self.limits}}
        whole = {name: value for name, value in values.items() if value is not None}
        return whole if len(whole) == len(values) else None

    def _combined(self, every: Sequence[Mapping[str, float]]) -> list[float]:
        if self.how != "sum" and len(every) < 2:
            return [0.0] * len(every)
        if self.how == "sum":
            return [sum(self._scaled(values).values()) for values in every]
        if self.how == "gdpo":
            return self._normalised(every)
        ranks = [tuple(round(values[name], 9) for name in self.weights) for values in every]
        places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
        return [places[rank] / max(1, len(places) - 1) for rank in ranks]

    def _scaled(self, values: Mapping[str, float]) -> dict[str, float]:
        return {n: w * values[n] / OBJECTIVES[n].scale for n, w in self.weights.items()}

    def _normalised(self, every: Sequence[Mapping[str, float]]) -> list[float]:
        totals = [0.0] * len(every)
        for name, weight in self.weights.items():
            column = [values[name] for values in every]
            mean = math.fsum(column) / max(1, len(column))
            spread = math.sqrt(math.fsum((v - mean) ** 2 for v in column) / max(1, len(column)))
            if spread > 1e-9:
                for place, value in enumerate(column):
                    totals[place] += weight * (value - mean) / spread
        return totals

    def _shortfall(self, values: Mapping[str, float]) -> float:
        """By how much limits are missed, divided by the scale; 0 if they are met."""
        short = (
            (least - values[name]) / OBJECTIVES[name].scale for name, least in self.limits.items()
        )
        return math.fsum(gap for gap in short if gap > 0)


class FairnessReward:
    """Minus how far the offers that a customer's group gets are from everybody's: |mean of the group - mean of all|, of what
    was taken off prices, over the scale of `discount`. None without groups."""

    name = "fairness"
    declaration = Declaration(high=0.0, reads=("books", "segment"), compares=True)

    def __init__(self, segment: str = "tier") -> None:
        self.segment = segment

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        offered = [
            trace.books.get("discounted", 0.0) if scorable(trace) and trace.books else None
            for trace in traces
        ]
        groups = [trace.segment.get(self.segment) for trace in traces]
        known = [(g, o) for g, o in zip(groups, offered, strict=True) if g and o is not None]
        if not known:
            return [None] * len(traces)
        everybody = math.fsum(o for _, o in known) / len(known)
        gaps = {}
        for group in {g for g, _ in known}:
            mine = [o for g, o in known if g == group]
            gaps[group] = abs(math.fsum(mine) / len(mine) - everybody)
        scale = OBJECTIVES["discount"].scale
        return [
            Score(value=-gaps[group] / scale, parts={str(group): gaps[group]})
            if group and offer is not None
            else None
            for group, offer in zip(groups, offered, strict=True)
        ]


def parse_objectives(text: str) -> ObjectivesReward:
    """`objectives:csat=0.5,gross_margin=0.5`, `objectives:sales` (a preset), `objectives:lexicographic:csat,gross_margin`.

    Raises BadInput with what was expected.
    """
    _, _, rest = text.partition(":")
    how, _, after = rest.partition(":")
    ways: dict[str, How] = {"sum": "sum", "lexicographic": "lexicographic", "gdpo": "gdpo"}
    way, names = (ways[how], after) if how in ways else ("sum", rest)
    if names in PRESETS:
        return ObjectivesReward(PRESETS[names], how=way)
    weights = {}
    for part in filter(None, names.split(",")):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight) if weight else 1.0
        except ValueError:
            raise BadInput(
                f"--reward: expected objectives:NAME=WEIGHT,…, found {part!r} in {text!r}."
            ) from None
    try:
        return ObjectivesReward(weights, how=way)
    except ValueError as error:
        raise BadInput(f"--reward: {error}") from None
