"""Dr. GRPO: GRPO without its two biases, the deviation (which favours questions nearly all or nearly none of a group
answers) and the length of an answer.

    A_i = R_i - mean R
    L   = - 1/N sum_i 1/C sum_t min(r_it A_i, clip(r_it, 1 - 0.2, 1 + 0.2) A_i)       C: a constant, `max_tokens`

Understanding R1-Zero-Like Training, arXiv 2503.20783, section 3.2.
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, centred

DR_GRPO = Algorithm(
    name="dr_grpo",
    equation="-1/N Σᵢ 1/C Σₜ min(r A, clip(r, 1±0.2) A), A = R - mean",
    source="Understanding R1-Zero-Like Training, arXiv 2503.20783, section 3.2",
    advantages=centred,
    loss="dr_grpo",
    constant=True,
)
