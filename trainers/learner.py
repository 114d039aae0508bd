"""A learner is the model that is trained, its optimiser and its checkpoints: groups of graded traces go in, a committed step
comes out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Score
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.trainers.algorithms import ALGORITHMS
from stateset_agents.trainers.algorithms.dapo import overlong
from stateset_agents.trainers.checkpoint import Checkpoints
from stateset_agents.trainers.config import DEFAULT_ADAPTER, TrainConfig
from stateset_agents.trainers.constraints import Limit, Multipliers
from stateset_agents.trainers.credit import Graded, samples
from stateset_agents.trainers.grading import Scores
from stateset_agents.trainers.learner_thread import LearnerThread
from stateset_agents.trainers.memory import return_large_blocks
from stateset_agents.trainers.model import load_model
from stateset_agents.trainers.packing.batches import Sample
from stateset_agents.trainers.step_log import StepLog
from stateset_agents.trainers.tree_trainer import grpo_trainer


def version(run: Path, step: int, adapter: str = DEFAULT_ADAPTER) -> str:
    """The name a policy is served under after `step` steps. Never reused, even by another run on the same server, because
    caches and traces are keyed by it."""
    return f"{run.name}-v{step}" if adapter == DEFAULT_ADAPTER else f"{run.name}-{adapter}-v{step}"


class Learner:
    """Continues from the newest committed step of a run."""

    def __init__(
        self,
        *,
        base: str,
        tokenizer: PreTrainedTokenizerBase,
        run: Path,
        config: TrainConfig,
        adapter: Path | None = None,
        limits: Sequence[Limit] = (),
    ) -> None:
        self.run, self.config = run, config
        self.thread = LearnerThread()
        self.checkpoints = Checkpoints(run, keep=config.staleness + 3, every=config.keep_every)
        committed = self.checkpoints.newest()
        self.step = committed.step if committed else 0
        self.log: list[StepLog] = list(committed.log) if committed else []
        self.state: dict[str, Any] = committed.state if committed else {}
        """The loop's state for a resume."""
        self.multipliers = Multipliers(limits, config.limit_rate)
        self.multipliers.values |= self.state.get("multipliers", {})
        device = "cuda" if torch.cuda.is_available() else "cpu"
        begun: dict[str, Path | None] = {
            name: self.checkpoints.weights(self.step, name) if committed else adapter
            for name in config.trained
        }
        self.model = load_model(
            str(committed.weights) if committed and config.full else base,
            config,
            adapters=begun,
            device=device,
        )
        self.trainer = grpo_trainer(self.model, tokenizer, run, config)
        if committed:
            self.trainer.optimizer.load_state_dict(committed.optimiser)
            torch.set_rng_state(committed.random)
        else:
            torch.manual_seed(config.seed)

    @classmethod
    async def start(cls, **options: Any) -> Self:
        """A learner that was made in its own thread, in which it also trains."""
        return_large_blocks()
        thread = LearnerThread()
        learner = await thread.run(cls, **options)
        learner.thread = thread
        return learner

    def use(self, config: TrainConfig) -> None:
        """Use other settings from now on: learning rate, KL weight, temperature."""
        self.config = self.trainer.config = config
        self.trainer.beta = config.beta
        self.trainer.temperature = config.temperature
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = config.learning_rate

    def learn(
        self,
        groups: Sequence[Sequence[Trace]],
        graded: Sequence[Scores],
        by_node: Mapping[str, Sequence[Scores]],
        *,
        max_gap: float,
        least_ess: float = 0.0,
    ) -> tuple[StepLog, dict[str, list[Sample]]]:
        """One step from scores to gradient. Returns the step's log, and the samples that each adapter learned from."""
        config, algorithm = self.config, ALGORITHMS[self.config.algorithm]
        every: dict[str, list[Sample]] = defaultdict(list)
        nodes: dict[str, list[float]] = defaultdict(list)
        flat = 0
        for number, (traces, scores) in enumerate(zip(groups, graded, strict=True)):
            group = Graded(
                traces=traces,
                values=[self._value(trace, score) for trace, score in zip(traces, scores, strict=True)],
                by_node={
                    node: [
                        self._value(trace, score)
                        for trace, score in zip(traces, columns[number], strict=True)
                    ]
                    for node, columns in by_node.items()
                },
            )  # fmt: skip
            by_adapter = samples(group, config.credit, algorithm.advantages, config.trained)
            flat += not any(any(s.advantages) for own in by_adapter.values() for s in own)
            for name, own in by_adapter.items():
                every[name] += own
                for sample in own:
                    for row, advantage in zip(
                        sample.trajectory.rows, sample.advantages, strict=True
                    ):
                        nodes[row.node].append(advantage)
        update = self.trainer.learn(every, max_gap=max_gap, least_ess=least_ess)
        # A KL term is paid on each token, with an advantage or without.
        learned = {
            name: [sample for sample in own if any(sample.advantages) or config.beta]
            for name, own in every.items()
        }
        zero = sum(not any(sample.advantages) for own in every.values() for sample in own)
        traces = [trace for group in groups for trace in group]
        log = StepLog.of(
            update,
            **_episodes(traces, [score for scores in graded for score in scores]),
            flat_groups=flat / len(groups),
            zero_advantage=zero / max(1, sum(map(len, every.values()))),
            nodes={
                node: {
                    "calls": len(advantages),
                    "advantage": sum(map(abs, advantages)) / len(advantages),
                    **_node_reward(by_node.get(node)),
                }
                for node, advantages in sorted(nodes.items())
            },
            learning_rate=config.learning_rate,
        )
        if self.multipliers.limits:
            whole = [trace for trace in traces if trace.forked is None]
            log.limits = self.multipliers.update(whole)
            log.multipliers = dict(self.multipliers.values)
        return log, learned

    def _value(self, trace: Trace, score: Score | None) -> float | None:
        if score is None:
            return None
        value = score.value - self.multipliers.price(trace)
        if self.config.overlong is not None:
            value -= overlong(trace.tokens_in_all, *self.config.overlong)
        return value

    def commit(self, log: StepLog, **state: Any) -> None:
        """Commit the next step: all of it is on disk, or none."""
        self.step += 1
        self.log.append(log)
        self.state = {"multipliers": self.multipliers.values, **state}
        self.checkpoints.commit(self.step, self.model, self.trainer.optimizer, self.state, self.log)

    def rewrite_log(self) -> None:
        """Write additions to a step's log line after its commit."""
        self.checkpoints.rewrite_log(self.step, self.log)


def _episodes(traces: Sequence[Trace], scores: Scores) -> dict[str, Any]:
    """The log values of a step's episodes."""
    values = [score.value for score in scores if score is not None]
    parts: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        for name, part in (score.parts if score is not None else {}).items():
            parts[name].append(part)
    goals = [trace.goal_score for trace in traces]
    ordered = sorted(values)
    return {
        "reward": sum(values) / len(values) if values else None,
        "reward_quartiles": [
            ordered[round(share * (len(ordered) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)
        ]
        if ordered
        else None,
        "parts": {name: sum(own) / len(own) for name, own in sorted(parts.items())},
        "success": sum(goal is not None and goal.success for goal in goals) / len(traces)
        if any(goal is not None for goal in goals)
        else None,
        "offered": sum(trace.offers_tools for trace in traces) / len(traces),
        "used": sum(bool(trace.tool_calls) for trace in traces) / len(traces),
        "unscored": len(traces) - len(values),
        "violations": sum(bool(trace.violations) for trace in traces) / len(traces),
        "episodes": len(traces),
        "constrained": sum(bool(call.constraint) for trace in traces for call in trace.calls),
        "forks": sum(trace.forked is not None for trace in traces),
        "tokens_sampled": sum(trace.tokens_sampled for trace in traces),
    }


def _node_reward(columns: Sequence[Scores] | None) -> dict[str, float]:
    values = [s.value for scores in columns or () for s in scores if s is not None]
    return {"reward": sum(values) / len(values)} if values else {}


def certificate(
    groups: Sequence[Sequence[Trace]], learned: Sequence[Sample], *, every: bool
) -> list[tuple[str, int, ModelCall]]:
    """The calls that an adapter learned from: those with an advantage, or with `every` all."""
    traces = {trace.id: trace for group in groups for trace in group}
    return [
        (sample.trajectory.trace_id, row.number, traces[sample.trajectory.trace_id].model_calls[row.number])
        for sample in learned
        for row, advantage in zip(sample.trajectory.rows, sample.advantages, strict=True)
        if advantage or every
    ]  # fmt: skip


def nothing_to_learn(log: Sequence[StepLog], after: int = 3) -> str | None:
    """Why a run should end: from its beginning nothing was scored, or all rewards were equal within every group. None
    otherwise."""
    if len(log) < after or any(line.flat_groups < 1 for line in log):
        return None
    if all(line.unscored == line.episodes for line in log):
        return (
            f"Expected episodes that can be scored, found none among {sum(line.episodes for line in log)} in {len(log)} steps: "
            "nothing was learned. Give the scenarios goals, or name a reward of your own (--reward module:attribute)."
        )
    return (
        f"Expected rewards that differ within a group, found that all were equal in {len(log)} steps: nothing was learned. Take a "
        "reward that tells episodes apart, a higher temperature, or scenarios that succeed sometimes."
    )


def check_learned(log: Sequence[StepLog], after: int = 3) -> None:
    """Raises RunBroken if nothing was learned in at least `after` steps."""
    reason = nothing_to_learn(log, after)
    if reason is not None:
        raise RunBroken(reason)
