"""DAPO: every token has the same weight, a ratio may rise further than fall, groups with equal rewards are sampled again, and
too long answers are penalised.

    A_i = (R_i - mean R) / std R
    L   = - 1/(sum_i T_i) sum_i sum_t min(r_it A_i, clip(r_it, 1 - 0.2, 1 + 0.28) A_i)

DAPO, arXiv 2503.14476, eq. 8 (loss), section 3.2 (`resample`: dynamic sampling) and eq. 13 (`overlong`).
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, normalised

DAPO = Algorithm(
    name="dapo",
    equation="-1/ΣT Σᵢ Σₜ min(r A, clip(r, 1-0.2, 1+0.28) A), A = (R - mean)/std",
    source="DAPO, arXiv 2503.14476, eq. 8 and 13",
    advantages=normalised,
    loss="dapo",
    clip_high=0.28,
    reads=frozenset({"resample", "overlong"}),
)


def overlong(tokens: int, soft: int, hard: int) -> float:
    """The penalty of a trajectory with this many sampled tokens: 0 up to `soft`, 1 from `hard` on, linear between them."""
    if tokens <= soft:
        return 0.0
    return min(1.0, (tokens - soft) / (hard - soft))
