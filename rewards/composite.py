"""Several rewards as one: a weighted sum, in which a part that could not be scored voids the whole."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from stateset_agents.reward import Reward, Score, checked_weight
from stateset_agents.rewards.effort import EffortReward
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.rewards.rules import RulesReward
from stateset_agents.trace import Trace


class CompositeReward:
    """`sum(weight * value)`. Weights come from the mapping, or from each reward's own `weight`.

    A trace for which any part is None is None as a whole: half a score would favour what is
    hard to score.
    """

    name = "composite"

    def __init__(self, rewards: Sequence[Reward] | Mapping[Reward, float]) -> None:
        if isinstance(rewards, Mapping):
            weighted = list(rewards.items())
        else:
            weighted = [(reward, float(_weight(reward))) for reward in rewards]
        if not weighted:
            raise ValueError("Expected at least one reward, found none.")
        self.weighted = [
            (reward, checked_weight(weight, reward.name)) for reward, weight in weighted
        ]

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        columns = await asyncio.gather(*(reward(traces) for reward, _ in self.weighted))
        return [self._combine([column[i] for column in columns]) for i in range(len(traces))]

    def _combine(self, scores: Sequence[Score | None]) -> Score | None:
        parts: dict[str, float] = {}
        reasons = []
        for (reward, weight), score in zip(self.weighted, scores, strict=True):
            if score is None:
                return None
            parts[reward.name] = weight * score.value
            if score.reason:
                reasons.append(f"{reward.name}: {score.reason}")
        return Score(value=sum(parts.values()), parts=parts, reason="; ".join(reasons))


def _weight(reward: Any) -> float:
    return getattr(reward, "weight", 1.0)


def shop_reward() -> CompositeReward:
    """What the demo pays for: the outcome, less for broken rules, a little less for effort."""
    return CompositeReward({OutcomeReward(): 1.0, RulesReward(): 0.3, EffortReward(): 0.1})
