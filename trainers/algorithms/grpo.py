"""GRPO: a trajectory's advantage is its distance from its group's mean, in units of the group's deviation.

    A_i = (R_i - mean R) / std R
    L   = - 1/N sum_i 1/T_i sum_t min(r_it A_i, clip(r_it, 1 - 0.2, 1 + 0.2) A_i)

DeepSeekMath, arXiv 2402.03300, eq. 3. A short trajectory's tokens weigh more than a long one's.
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, normalised

GRPO = Algorithm(
    name="grpo",
    equation="-1/N Σᵢ 1/Tᵢ Σₜ min(r A, clip(r, 1±0.2) A), A = (R - mean)/std",
    source="DeepSeekMath, arXiv 2402.03300, eq. 3",
    advantages=normalised,
    loss="grpo",
)
