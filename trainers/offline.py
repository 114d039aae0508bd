"""Training from recorded groups, without a policy server: samples of an older policy still show what was good.

Each trajectory has a weight for the difference between the sampling and the trained policy; as the policy moves, fewer
trajectories count. If the share that still counts (the effective sample size) falls below a bound, the run ends.
"""

import random
import time
from collections.abc import Sequence

from stateset_agents.errors import RunBroken
from stateset_agents.trace import Trace
from stateset_agents.traces.lineage import certify
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.grading import Grading, graded
from stateset_agents.trainers.learner import Learner, certificate, check_learned, version
from stateset_agents.trainers.loop import MAX_STALE_GAP, InitialPolicy, RunOutputs
from stateset_agents.trainers.step_log import StepLog
from stateset_agents.trainers.trackers import RunLog


async def train_offline(
    policy: InitialPolicy,
    groups: Sequence[Sequence[Trace]],
    grading: Grading,
    outputs: RunOutputs,
    config: TrainConfig,
) -> Learner:
    """`epochs` passes over recorded groups, at most `steps` steps. Returns the learner, whose log has a line for each step.

    The traces are of `outputs.store`, which keeps the certificates. Raises RunBroken if the first step shows that another
    policy sampled them.
    """
    learner = await Learner.start(
        base=policy.base, tokenizer=policy.tokenizer, run=outputs.run, config=config, limits=grading.limits
    )  # fmt: skip
    epoch = -(-len(groups) // config.groups)
    run_log = RunLog(outputs.run, outputs.trackers, config, learner.log)
    try:
        for step in range(learner.step + 1, min(config.steps, config.epochs * epoch) + 1):
            chosen = [groups[place] for place in _places(step, epoch, len(groups), config)]
            log = await _learn(learner, step, chosen, grading, outputs)
            if log.tokens_trained and not log.stepped:
                _end(learner, step, log, policy.base)
                break
            await learner.thread.run(learner.commit, log)
            run_log.add(log)
            outputs.report(log)
            check_learned(learner.log)
    finally:
        run_log.close()
        learner.thread.close()
    return learner


async def _learn(
    learner: Learner, step: int, groups: Sequence[Sequence[Trace]], grading: Grading, outputs: RunOutputs
) -> StepLog:  # fmt: skip
    """One optimiser step, with a certificate."""
    began = time.perf_counter()
    scores, node_scores = await graded(groups, grading)
    try:
        log, learned = await learner.thread.run(
            learner.learn, groups, scores, node_scores,
            max_gap=MAX_STALE_GAP if step == 1 else float("inf"), least_ess=learner.config.least_ess,
        )  # fmt: skip
    except RunBroken as error:
        raise RunBroken(f"Step {step}: {error}") from None
    log.step = step
    if log.stepped or not log.tokens_trained:
        for name, samples in learned.items():
            rows = certificate(groups, samples, every=learner.config.beta > 0)
            parent = version(outputs.run, step - 1, name) if step > 1 else ""
            await certify(outputs.store, version(outputs.run, step, name), rows, parent=parent)
    log.seconds_train = time.perf_counter() - began
    return log


def _end(learner: Learner, step: int, log: StepLog, base: str) -> None:
    """Why the run ends: the effective sample size is too small. Raises RunBroken if that is so from the beginning."""
    reason = (
        f"after {step - 1} steps only {log.ess:.0%} of the recorded trajectories still count (at least "
        f"{learner.config.least_ess:.0%})"
    )
    if not learner.log:
        raise RunBroken(
            f"Expected traces of a policy near {base!r}, found that {reason}. Lower --least-ess, or train what "
            "sampled them."
        )
    learner.log[-1].ended = f"{reason}: play new episodes with the adapter to go on"
    learner.rewrite_log()


def _places(step: int, epoch_steps: int, count: int, config: TrainConfig) -> list[int]:
    """The groups of a step: each epoch takes all of them, the first in the store's order, later ones shuffled with the seed."""
    epoch, place = divmod(step - 1, epoch_steps)
    order = list(range(count))
    if epoch:
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
    return order[place * config.groups : (place + 1) * config.groups]
