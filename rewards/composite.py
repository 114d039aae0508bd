"""Several rewards as one. If a part could not be scored the whole is None, or the part is left out on request; it is never
0."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stateset_agents.reward import Declaration, Reward, Score, checked_weight, declaration_of
from stateset_agents.rewards.effort import EffortReward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.manner import MannerReward
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.rewards.rules import RulesReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.trace import Trace


class CompositeReward:
    """`sum`: of weight times value. `min`: the least value. `product`: of the values, each at least 0, to the power of
    its weight. `gdpo`: of weight times the value's distance from its mean in the group, in units of its deviation there, so that
    no reward drowns another (GDPO, arXiv 2601.05242, eq. 4-6). Weights come from the mapping, or from each reward's own `weight`.

    A trace for which any part is None is None as a whole: half a score would favour what is
    hard to score. With `missing="skip"` the weights of the parts that are there are scaled up instead, and only a
    trace without any part is None.
    """

    name = "composite"

    def __init__(
        self, rewards: Sequence[Reward] | Mapping[Reward, float], *, how: Literal["sum", "min", "product", "gdpo"] = "sum",
        missing: Literal["void", "skip"] = "void",
    ) -> None:  # fmt: skip
        if isinstance(rewards, Mapping):
            weighted = list(rewards.items())
        else:
            weighted = [(reward, float(_weight(reward))) for reward in rewards]
        if not weighted:
            raise ValueError("Expected at least one reward, found none.")
        self.weighted = [
            (reward, checked_weight(weight, reward.name)) for reward, weight in weighted
        ]
        self.how, self.missing = how, missing
        parts = [declaration_of(reward) for reward, _ in self.weighted]
        self.declaration = Declaration(
            version="+".join(
                f"{r.name}@{declaration_of(r).version}*{w:g}" for r, w in self.weighted
            ),
            compares=how == "gdpo" or any(part.compares for part in parts),
            cost=max((part.cost for part in parts), key=("offline", "model", "network").index),
        )

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        columns = await asyncio.gather(*(reward(traces) for reward, _ in self.weighted))
        if self.how == "gdpo":
            columns = [_normalised(column) for column in columns]
        return [self._combine([column[i] for column in columns]) for i in range(len(traces))]

    def _combine(self, scores: Sequence[Score | None]) -> Score | None:
        there = [
            (reward, weight, score)
            for (reward, weight), score in zip(self.weighted, scores, strict=True)
            if score is not None
        ]
        if not there or (self.missing == "void" and len(there) < len(scores)):
            return None
        every = sum(weight for _, weight in self.weighted)
        scale = every / sum(weight for _, weight, _ in there)
        names = _apart([reward.name for reward, _, _ in there])
        match self.how:
            case "sum" | "gdpo":
                values = [scale * weight * score.value for _, weight, score in there]
                value = math.fsum(values)
            case "min":
                values = [score.value for _, _, score in there]
                value = min(values)
            case "product":
                values = [max(0.0, score.value) for _, _, score in there]
                value = math.prod(
                    factor ** (scale * weight)
                    for factor, (_, weight, _) in zip(values, there, strict=True)
                )
        parts = dict(zip(names, values, strict=True))
        reasons = [f"{r.name}: {score.reason}" for r, _, score in there if score.reason]
        return Score(value=value, parts=parts, reason="; ".join(reasons))


class GatedReward:
    """Pays for `reward` only where `gates` are passed: no credit for language where the outcome failed or a rule broke.
    Penalties count in any case. A gate is a reward and the least value that passes.

        GatedReward(HelpfulnessReward(), {OutcomeReward(): 1.0, RulesReward(): 0.0})
    """

    name = "gated"

    def __init__(self, reward: Reward, gates: Mapping[Reward, float]) -> None:
        if not gates:
            raise ValueError("Expected at least one gate, found none.")
        self.reward, self.gates = reward, dict(gates)
        inner = declaration_of(reward)
        self.declaration = Declaration(
            version=f"{inner.version}/" + "+".join(f"{g.name}>={v:g}" for g, v in gates.items()),
            low=min(0.0, inner.low), high=max(0.0, inner.high), cost=inner.cost,
            compares=inner.compares or any(declaration_of(gate).compares for gate in gates),
        )  # fmt: skip

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        scores, *columns = await asyncio.gather(
            self.reward(traces), *(gate(traces) for gate in self.gates)
        )
        return [
            self._passed(score, [column[n] for column in columns]) for n, score in enumerate(scores)
        ]

    def _passed(self, score: Score | None, gates: Sequence[Score | None]) -> Score | None:
        if score is None or any(gate is None for gate in gates):
            return None
        shut = [
            gate.name
            for (gate, least), passed in zip(self.gates.items(), gates, strict=True)
            if passed is not None and passed.value < least
        ]
        if not shut or score.value <= 0:
            return score
        return score.model_copy(update={"value": 0.0, "reason": f"no credit: {', '.join(shut)}"})


def _normalised(scores: Sequence[Score | None]) -> list[Score | None]:
    """A reward's scores of a group, as distances from their mean in deviations; all 0 where they are equal."""
    values = [score.value for score in scores if score is not None]
    mean = math.fsum(values) / max(1, len(values))
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, len(values)))
    return [
        None
        if score is None
        else score.model_copy(
            update={"value": (score.value - mean) / spread if spread > 1e-9 else 0.0}
        )
        for score in scores
    ]


def _apart(names: Sequence[str]) -> list[str]:
    """Names, the second of the same with `#2`."""
    return [
        f"{name}#{names[:n].count(name) + 1}" if name in names[:n] else name
        for n, name in enumerate(names)
    ]


def _weight(reward: Any) -> float:
    return getattr(reward, "weight", 1.0)


def shop_reward() -> CompositeReward:
    """The demo's reward: the outcome if nothing unsafe was said, minus broken rules, and a little minus effort and manner."""
    outcome = GatedReward(OutcomeReward(), {SafetyReward(): 1.0})
    return CompositeReward(
        {outcome: 1.0, RulesReward(): 0.3, EffortReward(): 0.1, MannerReward(): 0.1}
    )


def seed_reward() -> CompositeReward:
    """Language only, for agents whose shop cannot be read: helpfulness and safety."""
    return CompositeReward([HelpfulnessReward(0.7), SafetyReward(0.3)])


def objectives_reward(objectives: Reward) -> CompositeReward:
    """Business objectives for training: minus unsafe words and bad manner."""
    return CompositeReward({objectives: 1.0, SafetyReward(): 0.5, MannerReward(): 0.2})
