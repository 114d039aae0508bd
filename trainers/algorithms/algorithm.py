"""An algorithm: how a group's rewards become advantages, and which of TRL's losses is used."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Rewards = Sequence[float | None]
"""Rewards of one group; None if an episode could not be scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One module of this folder. The loss is TRL's, over the span of a trajectory: all its sampled tokens in order, so the
    number of model calls does not matter."""

    name: str
    equation: str
    """Its loss in one line: r is the importance ratio, A the advantage, i a trajectory of N, t one of its T_i tokens."""
    source: str
    advantages: Callable[[Rewards], list[float]]
    loss: Literal["grpo", "dr_grpo", "dapo", "cispo"]
    """TRL's `loss_type`: mean of trajectory means, sum over a constant, mean over tokens, or CISPO over tokens."""
    level: Literal["token", "sequence"] = "token"
    """TRL's `importance_sampling_level`."""
    clip_low: float | None = 0.2
    """How far a ratio may fall below 1 before it is clipped; None: no clip. `clip_high`: how far it may rise above 1."""
    clip_high: float | None = 0.2
    constant: bool = False
    """With loss `dr_grpo`: whether the sum over tokens is divided by the constant `max_tokens`, or by 1."""
    reads: frozenset[str] = frozenset()
    """Settings that only this algorithm uses."""


def centred(rewards: Rewards) -> list[float]:
    """`r - mean` within one group. An episode without a score gets 0 and is not in the mean. Raises ValueError for a group of
    one, in which nothing can be compared, and for a reward that is not a number."""
    if len(rewards) < 2:
        raise ValueError(f"Expected a group of at least two episodes, found {len(rewards)}.")
    scored = [reward for reward in rewards if reward is not None]
    if not all(map(math.isfinite, scored)):
        raise ValueError(f"Expected finite rewards, or None for what has none, found {scored}.")
    if len(scored) < 2:
        return [0.0] * len(rewards)
    mean = math.fsum(scored) / len(scored)
    centred = [0.0 if r is None else r - mean for r in rewards]
    # Rounding must not turn a group of equals into one that has something to learn from.
    return [a if abs(a) > 1e-9 else 0.0 for a in centred]


def normalised(rewards: Rewards) -> list[float]:
    """`(r - mean) / deviation` within one group; zeros if all rewards are equal. Otherwise like `centred`."""
    centred_rewards = centred(rewards)
    scored = [a for a, r in zip(centred_rewards, rewards, strict=True) if r is not None]
    deviation = math.sqrt(math.fsum(a**2 for a in scored) / max(1, len(scored)))
    if deviation < 1e-6:
        return [0.0] * len(rewards)
    return [a / deviation for a in centred_rewards]
