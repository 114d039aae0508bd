"""Rejection sampling, a baseline: supervised fine-tuning on the best of each group, and on nothing else.

    A_i = 1 for the best of a group, 0 for the rest
    L   = - 1/(sum_i T_i) sum_i sum_t min(r_it A_i, clip(r_it, 1 - 0.2, 1 + 0.28) A_i)

RAFT, arXiv 2304.06767, and ReST, arXiv 2308.08998: on-policy, with ratios of 1, the gradient is that of the log-likelihood.
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, Rewards


def best(rewards: Rewards) -> list[float]:
    """1 for the episodes with the best reward of their group, 0 for the rest. A group with equal rewards keeps nothing."""
    scored = [reward for reward in rewards if reward is not None]
    if len(scored) < 2 or max(scored) - min(scored) < 1e-6:
        return [0.0] * len(rewards)
    top = max(scored)
    return [float(reward is not None and reward > top - 1e-6) for reward in rewards]


REJECTION = Algorithm(
    name="rejection",
    equation="-1/ΣT Σᵢ Σₜ min(r A, clip(r, 1-0.2, 1+0.28) A), A = 1 for the best, else 0",
    source="RAFT, arXiv 2304.06767",
    advantages=best,
    loss="dapo",
    clip_high=0.28,
)
