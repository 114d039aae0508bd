"""GSPO: the ratio, and its clip, are of a whole trajectory: the geometric mean of its tokens' ratios.

    s_i = exp(1/T_i sum_t log r_it)
    L   = - 1/N sum_i min(s_i A_i, clip(s_i, 1 - 3e-4, 1 + 4e-4) A_i),       A_i as GRPO's

Group Sequence Policy Optimization, arXiv 2507.18071, eq. 5; the clip is that of its section 5.1. The span is the trajectory's:
all that was sampled in an episode, in whatever number of calls.
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, normalised

GSPO = Algorithm(
    name="gspo",
    equation="-1/N Σᵢ min(s A, clip(s, 1-3e-4, 1+4e-4) A), s = exp(1/Tᵢ Σₜ log r)",
    source="GSPO, arXiv 2507.18071, eq. 5",
    advantages=normalised,
    loss="grpo",
    level="sequence",
    clip_low=3e-4,
    clip_high=4e-4,
)
