"""Advantages: how much better an episode was than the others of its group.

rewards 1, 0, 0, 1   ->   advantages +1, -1, -1, +1      (mean 0.5, deviation 0.5)
rewards 1, None, 1   ->   advantages  0,  0,  0          nothing to tell apart; None never counts as 0
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal


def centred_advantages(rewards: Sequence[float | None]) -> list[float]:
    """`r - mean` within one group (Dr. GRPO, arXiv 2503.20783, eq. 4 without the length term).

    Episodes that could not be scored get 0 and stay out of the mean. Raises ValueError for a group of
    one, in which nothing can be compared.
    """
    if len(rewards) < 2:
        raise ValueError(f"Expected a group of at least two episodes, found {len(rewards)}.")
    scored = [reward for reward in rewards if reward is not None]
    if len(scored) < 2:
        return [0.0] * len(rewards)
    mean = math.fsum(scored) / len(scored)
    centred = [0.0 if r is None else r - mean for r in rewards]
    # Rounding must not turn a group of equals into one that has something to learn from.
    return [a if abs(a) > 1e-9 else 0.0 for a in centred]


def group_advantages(rewards: Sequence[float | None]) -> list[float]:
    """`(r - mean) / deviation` within one group (DeepSeekMath, arXiv 2402.03300, eq. 3 ff.).

    As `centred_advantages`; a group whose rewards are all equal gets zeros.
    """
    centred = centred_advantages(rewards)
    scored = [a for a, r in zip(centred, rewards, strict=True) if r is not None]
    deviation = math.sqrt(math.fsum(a**2 for a in scored) / max(1, len(scored)))
    if deviation < 1e-6:
        return [0.0] * len(rewards)
    return [a / deviation for a in centred]


def accepted(rewards: Sequence[float | None]) -> list[float]:
    """Rejection sampling: 1 for the episodes with the best reward of their group, 0 for the rest.

    With these weights the on-policy gradient is that of supervised fine-tuning on what was kept. A group
    whose rewards are all equal keeps nothing: none of it was chosen over anything.
    """
    scored = [reward for reward in rewards if reward is not None]
    if len(scored) < 2 or max(scored) - min(scored) < 1e-6:
        return [0.0] * len(rewards)
    best = max(scored)
    return [float(reward is not None and reward > best - 1e-6) for reward in rewards]


Algorithm = Literal["grpo", "dr_grpo", "rejection"]

ALGORITHMS: Mapping[Algorithm, Callable[[Sequence[float | None]], list[float]]] = {
    "grpo": group_advantages,
    "dr_grpo": centred_advantages,
    "rejection": accepted,
}
