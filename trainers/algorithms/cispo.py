"""CISPO: the weight of a token is clipped, but never its gradient, so that rare decisive tokens keep theirs.

    L = - 1/(sum_i T_i) sum_i sum_t sg(min(r_it, 1 + 4)) A_i log pi_it,       A_i as GRPO's; sg: no gradient

MiniMax-M1, arXiv 2506.13585, eq. 4; the cap of 5 is that of arXiv 2510.13786.
"""

from stateset_agents.trainers.algorithms.algorithm import Algorithm, normalised

CISPO = Algorithm(
    name="cispo",
    equation="-1/ΣT Σᵢ Σₜ sg(min(r, 5)) A log π, A = (R - mean)/std",
    source="MiniMax-M1, arXiv 2506.13585, eq. 4",
    advantages=normalised,
    loss="cispo",
    clip_low=None,
    clip_high=4.0,
)
