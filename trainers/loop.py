"""The training loop: scenarios -> episodes -> scores -> advantages -> one optimiser step -> commit -> publish.

step 1   play with version 0   learn   commit, serve version 1
step 2   play with version 1   learn   commit, serve version 2

With `staleness` s, step n plays with version n - 1 - s, so that it is played while steps n - s to n - 1 are learned. A step's
scenarios are planned when the step that it depends on is committed, so a killed run resumes with exactly the next scenarios.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.reward import Score
from stateset_agents.rewards.gaming_monitor import GamingMonitor
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Trace
from stateset_agents.traces.lineage import certify
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.config import DEFAULT_ADAPTER, TrainConfig
from stateset_agents.trainers.curriculum import Curriculum
from stateset_agents.trainers.grading import (
    Grading,
    Scores,
    are_equal,
    check_played,
    graded,
    success_of,
)
from stateset_agents.trainers.learner import (
    Learner,
    certificate,
    check_learned,
    version,
)
from stateset_agents.trainers.packing.batches import Sample
from stateset_agents.trainers.rollouts import Plan, Player, PlayForkable, Rollout
from stateset_agents.trainers.schedule import Schedule
from stateset_agents.trainers.step_log import StepLog
from stateset_agents.trainers.trackers import RunLog

Publish = Callable[[str, Path, int], Awaitable[None]]
"""Serve the weights at a path under a version name, and keep this many earlier versions."""
Report = Callable[[StepLog], None]
Measure = Callable[[StepLog, dict[str, str]], Awaitable[None]]
"""Measures the versions served after a step (by adapter) and adds the results to its log."""

MAX_GAP = 0.1
"""Nats a token by which an on-policy episode's log-probabilities may differ from the trainer's."""
MAX_STALE_GAP = 0.5
"""The same for episodes of an older policy. The mean ratio is near 1 for any model, since likelier and less likely tokens
cancel out; this difference does not cancel."""


@dataclass(frozen=True, kw_only=True)
class InitialPolicy:
    """The policy before the first step: the model at `base`, perhaps with `adapter`, served under the name `served`."""

    base: str
    tokenizer: PreTrainedTokenizerBase
    served: str = ""
    adapter: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """The scenarios and how they are played. `forks` needs `play_forkable`."""

    scenarios: Sequence[Scenario]
    rollout: Rollout
    play_forkable: PlayForkable | None = None


@dataclass(frozen=True, kw_only=True)
class RunOutputs:
    """Where a run writes its results."""

    run: Path
    store: TraceStore
    report: Report = lambda log: None
    trackers: Sequence[str] = ()


@dataclass(kw_only=True)
class Step:
    """One step, from its plan to its scores."""

    plan: Plan
    versions: dict[str, str]
    """The sampling versions, by adapter."""
    groups: list[list[Trace]]
    scores: list[list[Score | None]]
    node_scores: dict[str, list[Scores]]
    places: list[int]
    """Positions of the groups' scenarios in the list of training scenarios."""
    redrawn: list[Trace] = field(default_factory=list)
    """Episodes of groups with equal rewards, replaced by others."""
    seconds_rollout: float = 0.0

    @property
    def number(self) -> int:
        return self.plan.step


async def train(
    policy: InitialPolicy,
    episodes: Episodes,
    grading: Grading,
    outputs: RunOutputs,
    config: TrainConfig,
    *,
    publish: Publish,
    measure: Measure | None = None,
) -> Learner:
    """Train from the newest committed step on. Returns the learner, whose log has a line for each step.

    Raises RunBroken if it cannot continue; committed steps are kept.
    """
    if config.forks and episodes.play_forkable is None:
        raise BadInput("forks: expected episodes that can be forked, found a roll-out that cannot.")
    learner = await Learner.start(
        base=policy.base, tokenizer=policy.tokenizer, run=outputs.run, config=config, adapter=policy.adapter,
        limits=grading.limits,
    )  # fmt: skip
    loop = TrainingLoop(learner, policy, episodes, grading, outputs, config, publish, measure)
    await loop.resume()
    try:
        for number in loop.remaining():
            began = time.perf_counter()
            step = await loop.play(number)
            await loop.redraw_equal_groups(step)
            step.seconds_rollout = time.perf_counter() - began
            log = await loop.learn(step)
            await loop.commit(step, log)
            await loop.publish_and_measure(log)
            log.seconds = time.perf_counter() - began
            loop.report(log)
    finally:
        await loop.close()
    return learner


class TrainingLoop:
    """The state of a run between its steps."""

    def __init__(
        self, learner: Learner, policy: InitialPolicy, episodes: Episodes, grading: Grading, outputs: RunOutputs,
        config: TrainConfig, publish: Publish, measure: Measure | None,
    ) -> None:  # fmt: skip
        self.learner, self.policy, self.episodes, self.grading = learner, policy, episodes, grading
        self.outputs, self.config, self._publish, self._measure = outputs, config, publish, measure
        state = learner.state
        self.schedule = Schedule(config, state.get("schedule"))
        self.curriculum = Curriculum(
            len(episodes.scenarios), config.auto_adjust, config.seed, state.get("curriculum")
        )
        self.plans = {plan["step"]: Plan.model_validate(plan) for plan in state.get("plans", [])}
        self.player = Player(episodes.rollout, episodes.play_forkable, config)
        self.monitor = GamingMonitor()
        self.log = RunLog(outputs.run, outputs.trackers, config, learner.log)
        self.versions: dict[int, dict[str, str]] = {0: dict.fromkeys(config.trained, policy.served)}
        """Served versions by step and adapter."""
        self._playing: dict[int, asyncio.Task[list[list[Trace]]]] = {}
        learner.use(self.schedule.config)

    async def resume(self) -> None:
        """Serve the committed versions, plan the next steps, and complete the last step's log line if the run was killed
        before."""
        learner, config = self.learner, self.config
        # What a killed process stored of a step that it never committed is played again.
        self.outputs.store.discard_from("train", learner.step + 1)
        for step in range(max(1, learner.step - config.staleness), learner.step + 1):
            self.versions[step] = await self._serve(step)
        self._plan_after(learner.step)
        if self._measure is not None and learner.log and learner.log[-1].seconds is None:
            await self._measure(learner.log[-1], self.versions[learner.step])
            learner.rewrite_log()

    def remaining(self) -> Iterator[int]:
        """The remaining steps, until the last one or a plateau."""
        for step in range(self.learner.step + 1, self.config.steps + 1):
            if self.schedule.plateau is not None:
                return
            yield step

    def _plan_after(self, step: int) -> None:
        """Plan the steps that depend on nothing after `step`."""
        now = self.schedule.config
        for later in range(step + 1, step + 2 + self.config.staleness):
            if later <= self.config.steps and later not in self.plans:
                self.plans[later] = Plan(
                    step=later,
                    scenarios=tuple(self.curriculum.choose(later, self.config.groups)),
                    group_size=now.group_size,
                    temperature=now.temperature,
                )

    def _played_by(self, step: int) -> dict[str, str]:
        """The versions that play a step, by adapter."""
        return self.versions[max(0, step - 1 - self.config.staleness)]

    async def play(self, number: int) -> Step:
        """Roll-outs and rewards of a step. Later steps that may overlap with it begin to play."""
        for later in range(number, min(self.config.steps, number + self.config.staleness) + 1):
            if later not in self._playing:
                self._playing[later] = asyncio.create_task(
                    self.player.play(
                        self.plans[later], self.episodes.scenarios, *self._by_node(self._played_by(later))
                    )
                )  # fmt: skip
        plan = self.plans.pop(number)
        groups = await self._playing.pop(number)
        scores, node_scores = await graded(groups, self.grading)
        return Step(
            plan=plan,
            versions=self._played_by(number),
            groups=groups,
            scores=scores,
            node_scores=node_scores,
            places=list(plan.scenarios),
        )

    async def redraw_equal_groups(self, step: Step) -> None:
        """Replace groups with equal rewards by groups of other scenarios, at most `resample` times."""
        for attempt in range(1, self.config.resample + 1):
            equal = [number for number, scores in enumerate(step.scores) if are_equal(scores)]
            if not equal:
                break
            places = self.curriculum.choose(step.number, len(equal), attempt)
            plan = step.plan.model_copy(update={"scenarios": tuple(places)})
            groups = await self.player.play(
                plan, self.episodes.scenarios, *self._by_node(step.versions), attempt
            )
            scores, node_scores = await graded(groups, self.grading)
            for new, number in enumerate(equal):
                step.redrawn += step.groups[number]
                step.groups[number], step.scores[number] = groups[new], scores[new]
                step.places[number] = places[new]
                for node, columns in node_scores.items():
                    step.node_scores[node][number] = columns[new]

    async def learn(self, step: Step) -> StepLog:
        """Advantages and one optimiser step; the traces are stored, with a certificate."""
        began = time.perf_counter()
        check_played(step.groups, step.number)
        if self.config.shuffle_rewards:
            for number, scores in enumerate(step.scores):
                random.Random(f"{self.config.seed}/{step.number}/{number}").shuffle(scores)
        temperature = {"temperature": step.plan.temperature}
        self.learner.use(self.schedule.config.model_copy(update=temperature))
        gap = MAX_STALE_GAP if self.config.staleness else MAX_GAP
        try:
            log, learned = await self.learner.thread.run(
                self.learner.learn, step.groups, step.scores, step.node_scores, max_gap=gap
            )
        except RunBroken as error:
            raise RunBroken(f"Step {step.number}: {error}") from None
        log.step = step.number
        log.alarm = self._alarm(step)
        await self._store(step, learned)
        log.scenarios = [group[0].scenario.id for group in step.groups if group[0].scenario]
        log.concurrency = self.player.gate.limit
        log.redrawn = len(step.redrawn)
        log.tokens_sampled += sum(trace.tokens_sampled for trace in step.redrawn)
        log.seconds_rollout = step.seconds_rollout
        log.seconds_train = time.perf_counter() - began
        return log

    def _alarm(self, step: Step) -> str:
        scores = [score for scores in step.scores for score in scores]
        goals = [trace.goal_score for group in step.groups for trace in group]
        return self.monitor.see(
            [None if score is None else score.value for score in scores],
            [None if goal is None else goal.success for goal in goals],
        )

    async def _store(self, step: Step, learned: Mapping[str, Sequence[Sample]]) -> None:
        """Traces with their scores, and which calls each adapter's next version learned from."""
        store, run = self.outputs.store, self.outputs.run
        pending = [
            store.append(trace, phase="train", step=step.number, score=score)
            for group, scores in zip(step.groups, step.scores, strict=True)
            for trace, score in zip(group, scores, strict=True)
        ]
        for name, samples in learned.items():
            rows = certificate(step.groups, samples, every=self.learner.config.beta > 0)
            parent = self.versions[step.number - 1][name]
            pending.append(certify(store, version(run, step.number, name), rows, parent=parent))
        for written in pending:
            await written

    async def commit(self, step: Step, log: StepLog) -> None:
        """Write the step to disk atomically, with the state that the next steps need."""
        successes = [
            success_of(group, scores)
            for group, scores in zip(step.groups, step.scores, strict=True)
        ]
        self.curriculum.see(step.places, successes)
        log.changes = self.schedule.see(log)
        self._plan_after(step.number)
        await self.learner.thread.run(
            self.learner.commit, log, schedule=self.schedule.state, curriculum=self.curriculum.state,
            plans=[plan.model_dump() for plan in self.plans.values()],
        )  # fmt: skip

    async def publish_and_measure(self, log: StepLog) -> None:
        """Publish the new version, and measure it if that is due."""
        self.versions[log.step] = await self._serve(log.step)
        if self._measure is not None:
            await self._measure(log, self.versions[log.step])

    def report(self, log: StepLog) -> None:
        """Write the finished log line. Raises RunBroken if nothing was ever learned."""
        self.learner.rewrite_log()
        self.log.add(log)
        self.outputs.report(log)
        check_learned(self.learner.log)

    async def _serve(self, step: int) -> dict[str, str]:
        """Serve the weights after a step. Returns the version names, by adapter."""
        names = {}
        for adapter in self.config.trained:
            names[adapter] = version(self.outputs.run, step, adapter)
            weights = self.learner.checkpoints.weights(step, adapter)
            await self._publish(names[adapter], weights, self.config.staleness + 1)
        return names

    def _by_node(self, versions: dict[str, str]) -> tuple[dict[str, str], str]:
        """The version that answers at each node, and elsewhere: the default adapter answers everywhere, named ones at their nodes."""
        return versions_by_node(versions, self.config, self.policy.served)

    async def close(self) -> None:
        """Cancel running episodes, and close the trackers."""
        for task in self._playing.values():
            task.cancel()
        await asyncio.gather(*self._playing.values(), return_exceptions=True)
        self.learner.thread.close()
        self.log.close()


def versions_by_node(
    versions: Mapping[str, str], config: TrainConfig, base: str
) -> tuple[dict[str, str], str]:
    """Versions by node, and the version for all other nodes: from `versions` by adapter, with `base` for nodes without an
    adapter."""
    if set(versions) == {DEFAULT_ADAPTER}:
        return {}, versions[DEFAULT_ADAPTER]
    return {node: versions[name] for name, nodes in config.trained.items() for node in nodes}, base
