"""RLOO: REINFORCE over whole trajectories, each against the mean of the others.

    A_i = R_i - mean of R_j over j != i
    L   = - 1/N sum_i sum_t r_it A_i

Back to Basics, arXiv 2402.14740, eq. 6. The gradient is unbiased: no clip, no length, no deviation.
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, Rewards, centred


def against_the_others(rewards: Rewards) -> list[float]:
    """`r - mean of the others`, which is n / (n - 1) times what `centred` gives."""
    scored = sum(reward is not None for reward in rewards)
    centred_rewards = centred(rewards)
    return [a * scored / (scored - 1) for a in centred_rewards] if scored > 1 else centred_rewards


RLOO = Algorithm(
    name="rloo",
    equation="-1/N Σᵢ Σₜ r A, A = Rᵢ - mean of the others",
    source="Back to Basics, arXiv 2402.14740, eq. 6",
    advantages=against_the_others,
    loss="dr_grpo",
    clip_low=None,
    clip_high=None,
)
