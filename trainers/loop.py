"""The training loop: scenarios -> episodes -> grades -> advantages -> one optimiser step -> commit.

step 1   play with version 0   learn   commit, serve version 1
step 2   play with version 1   learn   commit, serve version 2

With `staleness` s, step n plays with version n - 1 - s, so that it is played while steps n - s to n - 1 are learned. What a step plays
is planned when the step is committed that it depends on, so a run that is killed goes on with the very scenarios that come next.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.reward import Reward
from stateset_agents.rewards.gaming_monitor import Watch
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Trace
from stateset_agents.traces.lineage import certify
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.config import ONE, TrainConfig
from stateset_agents.trainers.constraints import Limit
from stateset_agents.trainers.curriculum import Curriculum
from stateset_agents.trainers.learner import (
    Learner,
    Scores,
    certificate,
    ended_for_nothing,
    version,
)
from stateset_agents.trainers.rollouts import Hold, Plan, Player, Rollout
from stateset_agents.trainers.schedule import Schedule
from stateset_agents.trainers.trackers import Logs
from stateset_agents.trajectory import trajectory

Publish = Callable[[str, Path, int], Awaitable[None]]
"""Serve the weights at a path under a version name, and keep so many versions before it."""
Report = Callable[[dict[str, Any]], None]

NEAR = 0.1
"""Nats a token by which an on-policy episode's log-probabilities may differ from the trainer's."""
FAR = 0.5
"""The same for episodes of an older policy. A ratio is near 1 on average for any model whatever, since likelier and less likely tokens
make up for each other; this is not."""


async def train(
    *,
    base: str,
    served: str,
    tokenizer: PreTrainedTokenizerBase,
    scenarios: Sequence[Scenario],
    rollout: Rollout,
    reward: Reward,
    publish: Publish,
    store: TraceStore,
    run: Path,
    config: TrainConfig,
    report: Report,
    hold: Hold | None = None,
    node_rewards: Mapping[str, Reward] | None = None,
    limits: Sequence[Limit] = (),
    adapter: Path | None = None,
    logs: Sequence[str] = (),
    measure: Callable[[int, dict[str, str]], Awaitable[dict[str, Any]]] | None = None,
) -> Learner:
    """Train from the newest committed step on, and return the learner: its log has a line for each step.

    `served` is the name under which the policy before the first step answers: the model at `base`, with
    `adapter` where one is given. `hold` plays episodes that can be forked; `forks` needs it. `measure` adds
    to a step's line what it finds of the versions served after it, by adapter. Raises RunBroken where it cannot
    go on; what was committed stays.
    """
    if config.forks and hold is None:
        raise BadInput("forks: expected episodes that can be forked, found a roll-out that cannot.")
    learner = await asyncio.to_thread(
        Learner, base=base, tokenizer=tokenizer, run=run, config=config, adapter=adapter, limits=limits
    )  # fmt: skip
    # What a killed process stored of a step that it never committed is played again.
    store.discard_from("train", learner.step + 1)
    schedule = Schedule(config, learner.state.get("schedule"))
    curriculum = Curriculum(
        len(scenarios), config.auto_adjust, config.seed, learner.state.get("curriculum")
    )
    learner.use(schedule.config)
    plans = {plan["step"]: Plan.model_validate(plan) for plan in learner.state.get("plans", [])}
    player = Player(rollout, hold, config)
    names: dict[int, dict[str, str]] = {0: dict.fromkeys(config.trained, served)}
    for step in range(max(1, learner.step - config.staleness), learner.step + 1):
        names[step] = await _publish(learner, step, publish)

    def plan(step: int) -> None:
        if step <= config.steps and step not in plans:
            now = schedule.config
            plans[step] = Plan(
                step=step,
                scenarios=tuple(curriculum.choose(step, config.groups)),
                group_size=now.group_size,
                temperature=now.temperature,
            )

    for step in range(learner.step + 1, learner.step + 2 + config.staleness):
        plan(step)
    ahead: dict[int, asyncio.Task[list[list[Trace]]]] = {}
    watch = Watch()
    written = Logs(run, logs, config, learner.log)
    last = learner.step if schedule.plateau is not None else config.steps
    if measure is not None and learner.log and "seconds" not in learner.log[-1]:
        learner.log[-1].update(await measure(learner.step, names[learner.step]))
        learner.rewrite_log()
    try:
        for step in range(learner.step + 1, last + 1):
            began = time.perf_counter()
            for later in range(step, min(config.steps, step + config.staleness) + 1):
                if later not in ahead:
                    by = names[max(0, later - 1 - config.staleness)]
                    ahead[later] = asyncio.create_task(
                        player.play(plans[later], scenarios, *_asked(by, config, served))
                    )
            current = plans.pop(step)
            by = names[max(0, step - 1 - config.staleness)]
            groups = await ahead.pop(step)
            graded, by_node = await _graded(groups, reward, node_rewards or {})
            places, replaced = list(current.scenarios), list[Trace]()
            for again in range(1, config.resample + 1):
                flat = [n for n, scores in enumerate(graded) if _flat(scores)]
                if not flat:
                    break
                chosen = curriculum.choose(step, len(flat), again)
                more = await player.play(
                    current.model_copy(update={"scenarios": tuple(chosen)}), scenarios,
                    *_asked(by, config, served), again,
                )  # fmt: skip
                found, nodes = await _graded(more, reward, node_rewards or {})
                for place, group, scores, number in zip(
                    flat, more, found, range(len(flat)), strict=True
                ):
                    replaced += groups[place]
                    groups[place], graded[place] = group, scores
                    places[place] = chosen[number]
                    for node, columns in nodes.items():
                        by_node[node][place] = columns[number]
            rolled = time.perf_counter()
            _played(groups, step)
            if config.shuffle_rewards:
                for number, scores in enumerate(graded):
                    random.Random(f"{config.seed}/{step}/{number}").shuffle(scores)
            learner.use(schedule.config.model_copy(update={"temperature": current.temperature}))
            try:
                line, learned = await asyncio.to_thread(
                    learner.learn, groups, graded, by_node, gap=FAR if config.staleness else NEAR
                )
            except RunBroken as error:
                raise RunBroken(f"Step {step}: {error}") from None
            successes = [
                _succeeded(group, scores) for group, scores in zip(groups, graded, strict=True)
            ]
            line["alarm"] = watch.see(
                [None if score is None else score.value for scores in graded for score in scores],
                [
                    g.success if (g := trace.goal_score) else None
                    for group in groups
                    for trace in group
                ],
            )
            pending = [
                store.append(trace, phase="train", step=step, score=score)
                for group, scores in zip(groups, graded, strict=True)
                for trace, score in zip(group, scores, strict=True)
            ]
            for name, mine in learned.items():
                rows = certificate(groups, mine, every=learner.config.beta > 0)
                pending.append(
                    certify(store, version(run, step, name), rows, parent=names[step - 1][name])
                )
            for waiting in pending:
                await waiting
            trained = time.perf_counter()
            line |= {
                "step": step,
                "scenarios": [group[0].scenario.id for group in groups if group[0].scenario],
                "concurrency": player.gate.limit,
                "seconds_rollout": rolled - began,
                "seconds_train": trained - rolled,
            }
            if replaced:
                line["replaced"] = len(replaced)
                line["tokens_sampled"] += sum(trace.tokens_sampled for trace in replaced)
            curriculum.see(places, successes)
            line["changes"] = schedule.see(line)
            for later in range(step + 1, step + 2 + config.staleness):
                plan(later)
            await asyncio.to_thread(
                learner.commit, line, schedule=schedule.state, curriculum=curriculum.state,
                plans=[one.model_dump() for one in plans.values()],
            )  # fmt: skip
            names[step] = await _publish(learner, step, publish)
            if measure is not None:
                line |= await measure(step, names[step])
            line["seconds"] = time.perf_counter() - began
            learner.rewrite_log()
            written.add(step, line)
            report(line)
            ended_for_nothing(learner.log)
            if schedule.plateau is not None:
                break
    finally:
        for task in ahead.values():
            task.cancel()
        await asyncio.gather(*ahead.values(), return_exceptions=True)
        written.close()
    return learner


async def _publish(learner: Learner, step: int, publish: Publish) -> dict[str, str]:
    """Serve what is after a step; the names it is served under, by adapter."""
    names = {}
    for name in learner.config.trained:
        names[name] = version(learner.run, step, name)
        await publish(
            names[name], learner.checkpoints.weights(step, name), learner.config.staleness + 1
        )
    return names


def _asked(by: dict[str, str], config: TrainConfig, served: str) -> tuple[dict[str, str], str]:
    """Which version is asked for at which node, and elsewhere: one adapter answers everywhere, several at their nodes."""
    if set(by) == {ONE}:
        return {}, by[ONE]
    return {node: by[name] for name, nodes in config.trained.items() for node in nodes}, served


async def _graded(
    groups: Sequence[Sequence[Trace]], reward: Reward, by_node: Mapping[str, Reward]
) -> tuple[list[list[Any]], dict[str, list[Scores]]]:
    graded = list(await asyncio.gather(*(reward(list(group)) for group in groups)))
    nodes: dict[str, list[Scores]] = {
        node: list(await asyncio.gather(*(other(list(group)) for group in groups)))
        for node, other in by_node.items()
    }
    return graded, nodes


def _flat(scores: Scores) -> bool:
    values = [score.value for score in scores if score is not None]
    return len(values) < 2 or max(values) - min(values) < 1e-6


def _played(groups: Sequence[Sequence[Trace]], step: int) -> None:
    """Raises RunBroken where what was played cannot be trained on."""
    traces = [trace for group in groups for trace in group]
    failed = [trace for trace in traces if trace.status == "failed"]
    if len(failed) > len(traces) // 2:
        raise RunBroken(
            f"Expected episodes in step {step}, found that {len(failed)} of {len(traces)} failed, the last with: "
            f"{failed[-1].error} What was committed is kept."
        )
    ended = [trace for trace in traces if trace.status != "failed"]
    if not any(trajectory(trace).tokens for trace in ended):
        raise RunBroken(
            f"Expected episodes in step {step} in which the policy was asked, found that none of {len(ended)} holds a token of it. "
            "Does the graph call the model it is given?"
        )


def _succeeded(group: Sequence[Trace], scores: Scores) -> float | None:
    """The share of a group that reached its goal; its mean reward, from 0 to 1, where there is no goal."""
    goals = [trace.goal_score for trace in group]
    if all(goal is not None for goal in goals):
        return sum(goal is not None and goal.success for goal in goals) / len(goals)
    values = [score.value for score in scores if score is not None]
    return min(1.0, max(0.0, sum(values) / len(values))) if values else None
