"""Training from recorded groups alone, without a policy server: what was sampled by an older policy still says what was good.

What lies between the policy that sampled and the one that trains is a weight for each trajectory; as the policy moves, fewer of them
count. The share that still does (effective sample size) is bounded: below it a store has no more to say, and the run ends.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Reward
from stateset_agents.trace import Trace
from stateset_agents.traces.lineage import certify
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.constraints import Limit
from stateset_agents.trainers.learner import Learner, certificate, ended_for_nothing, version
from stateset_agents.trainers.loop import FAR
from stateset_agents.trainers.trackers import Logs


async def train_recorded(
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[Trace]],
    reward: Reward,
    store: TraceStore,
    run: Path,
    config: TrainConfig,
    report: Callable[[dict[str, Any]], None],
    node_rewards: Mapping[str, Reward] | None = None,
    limits: Sequence[Limit] = (),
    logs: Sequence[str] = (),
) -> Learner:
    """`epochs` passes over recorded groups, at most `steps` steps; returns the learner, whose log has a line for each.

    `store` is where the traces are from; it keeps the certificates. Raises RunBroken where the first step finds that
    another policy sampled them.
    """
    learner = await asyncio.to_thread(
        Learner, base=base, tokenizer=tokenizer, run=run, config=config, limits=limits
    )
    each = -(-len(groups) // config.groups)
    written = Logs(run, logs, config, learner.log)
    try:
        for step in range(learner.step + 1, min(config.steps, config.epochs * each) + 1):
            chosen = [groups[place] for place in _places(step, each, len(groups), config)]
            began = time.perf_counter()
            graded = list(await asyncio.gather(*(reward(list(group)) for group in chosen)))
            by_node = {
                node: list(await asyncio.gather(*(other(list(group)) for group in chosen)))
                for node, other in (node_rewards or {}).items()
            }
            try:
                line, learned = await asyncio.to_thread(
                    learner.learn, chosen, graded, by_node, gap=FAR if step == 1 else float("inf"),
                    least_ess=config.least_ess,
                )  # fmt: skip
            except RunBroken as error:
                raise RunBroken(f"Step {step}: {error}") from None
            if line["tokens_trained"] and not line["stepped"]:
                told = (
                    f"after {step - 1} steps only {line['ess']:.0%} of the recorded trajectories still count (at least "
                    f"{config.least_ess:.0%})"
                )
                if not learner.log:
                    raise RunBroken(
                        f"Expected traces of a policy near {base!r}, found that {told}. Lower --least-ess, or train what "
                        "sampled them."
                    )
                learner.log[-1]["ended"] = f"{told}: play new episodes with the adapter to go on"
                learner.rewrite_log()
                break
            for name, mine in learned.items():
                rows = certificate(chosen, mine, every=config.beta > 0)
                above = version(run, step - 1, name) if step > 1 else ""
                await certify(store, version(run, step, name), rows, parent=above)
            line |= {"step": step, "seconds_train": time.perf_counter() - began}
            await asyncio.to_thread(learner.commit, line)
            written.add(step, line)
            report(line)
            ended_for_nothing(learner.log)
    finally:
        written.close()
    return learner


def _places(step: int, each: int, count: int, config: TrainConfig) -> list[int]:
    """Which groups a step takes: every epoch all of them, the first in the order of the store, later ones shuffled by the seed."""
    epoch, place = divmod(step - 1, each)
    order = list(range(count))
    if epoch:
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
    return order[place * config.groups : (place + 1) * config.groups]
