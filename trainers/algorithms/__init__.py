"""The algorithms by name, one module each."""

from stateset_agents.trainers.algorithms.algorithm import Algorithm
from stateset_agents.trainers.algorithms.cispo import CISPO
from stateset_agents.trainers.algorithms.dapo import DAPO
from stateset_agents.trainers.algorithms.dr_grpo import DR_GRPO
from stateset_agents.trainers.algorithms.grpo import GRPO
from stateset_agents.trainers.algorithms.gspo import GSPO
from stateset_agents.trainers.algorithms.rejection import REJECTION
from stateset_agents.trainers.algorithms.rloo import RLOO

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (GRPO, DR_GRPO, DAPO, GSPO, CISPO, RLOO, REJECTION)
}
