"""The training loop: scenarios -> episodes -> grades -> advantages -> one optimiser step -> commit.

Step n takes the n-th slice of the scenarios, whatever happened before, so a run that is killed goes
on with the very scenario that comes next.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Reward, Score
from stateset_agents.rewards.watch import Watch
from stateset_agents.scenario import Scenario
from stateset_agents.trace import ModelCall, Sampling, Trace
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.advantages import ALGORITHMS, Algorithm
from stateset_agents.trainers.checkpoint import Checkpoints
from stateset_agents.trainers.grpo import grpo_trainer, lora_model, passes
from stateset_agents.trajectory import Trajectory, trajectory

Rollout = Callable[[Scenario, Sampling], Awaitable[Trace]]
Publish = Callable[[str, Path], Awaitable[None]]
"""Serve the adapter at a path under a version name."""
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a policy is trained. Every field is read; the defaults are what the demo runs with."""

    steps: int = 32
    groups: int = 8
    """Scenarios a step."""
    group_size: int = 8
    """Episodes a scenario."""
    learning_rate: float = 1e-3
    rank: int = 16
    beta: float = 0.0
    clip_high: float = 0.28
    temperature: float = 1.0
    max_tokens: int = 96
    concurrency: int = 64
    seed: int = 1
    algorithm: Algorithm = "dr_grpo"
    shuffle_rewards: bool = False
    """A control: rewards are shuffled within each group, so that there is nothing to learn."""


def version(run: Path, step: int) -> str:
    """The name a policy is served under after `step` steps. Never reused, not by another run on the same
    server either: caches and traces are keyed by it."""
    return f"{run.name}-v{step}"


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
    nodes: Sequence[str] | None = None,
    adapter: Path | None = None,
) -> tuple[Path, list[dict[str, Any]]]:
    """Train from the newest committed step on. Returns the adapter's folder and a log line per step.

    `served` is the name under which the policy before the first step answers: the model at `base`, with
    `adapter` where one is given.
    """
    checkpoints = Checkpoints(run)
    committed = checkpoints.newest()
    done = committed.step if committed else 0
    log = list(committed.log) if committed else []
    store.discard_from("train", done + 1)
    model = lora_model(
        base,
        rank=config.rank,
        seed=config.seed,
        adapter=str(committed.adapter) if committed else str(adapter) if adapter else None,
    )
    trainer = grpo_trainer(
        model,
        tokenizer,
        run,
        learning_rate=config.learning_rate,
        group_size=config.group_size,
        temperature=config.temperature,
        beta=config.beta,
        clip_high=config.clip_high,
    )
    if committed:
        trainer.optimizer.load_state_dict(committed.optimiser)
        served = version(run, done)
        await publish(served, committed.adapter)
    watch = Watch()
    for step in range(done + 1, config.steps + 1):
        chosen = [
            scenarios[((step - 1) * config.groups + i) % len(scenarios)]
            for i in range(config.groups)
        ]
        began = time.perf_counter()
        groups = await play(chosen, rollout, config, step, served)
        graded = list(await asyncio.gather(*(reward(group) for group in groups)))
        rolled = time.perf_counter()
        failed = [trace for group in groups for trace in group if trace.status == "failed"]
        if len(failed) > config.groups * config.group_size // 2:
            raise RunBroken(
                f"Expected episodes in step {step}, found that {len(failed)} of "
                f"{config.groups * config.group_size} failed, the last with: {failed[-1].error} "
                "What was committed is kept."
            )
        if config.shuffle_rewards:
            for number, scores in enumerate(graded):
                random.Random(f"{config.seed}/{step}/{number}").shuffle(scores)
        line, learned = await asyncio.to_thread(
            _learn, trainer, groups, graded, nodes, config.algorithm
        )
        if abs(line["ratio"] - 1.0) > 0.1 or line["gap"] > 0.1:
            raise RunBroken(
                f"Expected on-policy episodes in step {step}, found that the policy server's "
                f"log-probabilities differ from the trainer's by {line['gap']:.2f} nats a token. Start "
                "vLLM with --logprobs-mode processed_logprobs and the same model in fp32 or bf16."
            )
        line["alarm"] = watch.see(
            [None if score is None else score.value for scores in graded for score in scores],
            [g.success if (g := trace.goal_score) else None for group in groups for trace in group],
        )
        pending = [
            store.append(trace, phase="train", step=step, score=score)
            for group, scores in zip(groups, graded, strict=True)
            for trace, score in zip(group, scores, strict=True)
        ]
        certificate = _certificate(groups, learned)
        pending.append(store.certify(version(run, step), certificate, parent=served))
        for written in pending:
            await written
        trained = time.perf_counter()
        line |= {
            "step": step,
            "scenarios": [scenario.id for scenario in chosen],
            "seconds_rollout": rolled - began,
            "seconds_train": trained - rolled,
        }
        log.append(line)
        newest = checkpoints.commit(step, model, trainer.optimizer, log)
        served = version(run, step)
        await publish(served, newest)
        line["seconds"] = time.perf_counter() - began
        report(line)
    return checkpoints.adapter(config.steps), log


async def train_recorded(
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[Trace]],
    reward: Reward,
    store: TraceStore,
    run: Path,
    config: TrainConfig,
    report: Report,
    nodes: Sequence[str] | None = None,
) -> tuple[Path, list[dict[str, Any]]]:
    """One pass over recorded groups, without a policy server: what was sampled is weighted by how likely it is now
    against what was recorded, clipped. Returns the adapter's folder and a log line per step.

    `store` is where the traces are from; it keeps the certificates. Raises RunBroken where the first step finds that
    another policy sampled them.
    """
    checkpoints = Checkpoints(run)
    committed = checkpoints.newest()
    done = committed.step if committed else 0
    log = list(committed.log) if committed else []
    adapter = str(committed.adapter) if committed else None
    trainer = grpo_trainer(
        lora_model(base, rank=config.rank, seed=config.seed, adapter=adapter), tokenizer, run,
        learning_rate=config.learning_rate, group_size=config.group_size, temperature=config.temperature,
        beta=config.beta, clip_high=config.clip_high,
    )  # fmt: skip
    if committed:
        trainer.optimizer.load_state_dict(committed.optimiser)
    steps = min(config.steps, -(-len(groups) // config.groups))
    for step in range(done + 1, steps + 1):
        chosen = groups[(step - 1) * config.groups : step * config.groups]
        began = time.perf_counter()
        graded = list(await asyncio.gather(*(reward(list(group)) for group in chosen)))
        line, learned = await asyncio.to_thread(
            _learn, trainer, chosen, graded, nodes, config.algorithm
        )
        if line["gap"] > FAR:
            raise RunBroken(
                f"Expected traces that {base!r} sampled, or a policy close to it, found in step {step} that its "
                f"log-probabilities are {line['gap']:.2f} nats a token from the recorded ones. Train the model that sampled "
                "them: `traces list` names its version. What was committed is kept."
            )
        parent = version(run, step - 1) if step > 1 else ""
        certificate = _certificate(chosen, learned)
        await store.certify(version(run, step), certificate, parent=parent)
        line |= {"step": step, "seconds_train": time.perf_counter() - began}
        log.append(line)
        checkpoints.commit(step, trainer.model, trainer.optimizer, log)
        report(line)
    return checkpoints.adapter(steps), log


FAR = 0.5
"""Nats a token by which log-probabilities may differ, on average, from those that were recorded: a ratio is near 1 on average for
any model whatever, since likelier and less likely tokens make up for each other."""


async def play(
    scenarios: Sequence[Scenario], rollout: Rollout, config: TrainConfig, step: int, served: str
) -> list[list[Trace]]:
    """A group of episodes for each scenario, sampled by the version `served`."""
    gate = asyncio.Semaphore(config.concurrency)

    async def one(scenario: Scenario, number: int) -> Trace:
        seed = random.Random(f"{config.seed}/{step}/{scenario.id}/{number}").getrandbits(31)
        sampling = Sampling(
            version=served,
            temperature=config.temperature,
            seed=seed,
            max_tokens=config.max_tokens,
        )
        async with gate:
            return await rollout(scenario, sampling)

    async def group(scenario: Scenario) -> list[Trace]:
        return list(
            await asyncio.gather(*(one(scenario, number) for number in range(config.group_size)))
        )

    return list(await asyncio.gather(*(group(scenario) for scenario in scenarios)))


def _learn(
    trainer: Any,
    groups: Sequence[Sequence[Trace]],
    graded: Sequence[Sequence[Score | None]],
    nodes: Sequence[str] | None,
    algorithm: Algorithm,
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Grade to gradient for one step, and whose rows had an advantage to learn from. An episode without a score is in
    no row and no normaliser."""
    trajectories: list[Trajectory] = []
    worth: list[float] = []
    flat = 0
    for traces, scores in zip(groups, graded, strict=True):
        advantages = ALGORITHMS[algorithm]([None if s is None else s.value for s in scores])
        flat += not any(advantages)
        for trace, score, advantage in zip(traces, scores, advantages, strict=True):
            if score is not None:
                trajectories.append(trajectory(trace, nodes=nodes))
                worth.append(advantage)
    packed = passes(trajectories, worth, every=trainer.beta != 0.0)
    tokens = sum(trajectory.tokens for trajectory in trajectories)
    learned = {
        "entropy": 0.0,
        "clipped": 0.0,
        "grad_norm": 0.0,
        "ratio": 1.0,
        "gap": 0.0,
        "kl": 0.0,
    }
    if packed:
        try:
            learned = trainer.learn(packed, tokens)
        except FloatingPointError as error:
            raise RunBroken(
                f"{error} The last committed step is whole; lower the learning rate."
            ) from None
    every = [trace for traces in groups for trace in traces]
    values = [s.value for scores in graded for s in scores if s is not None]
    goals = [trace.goal_score for trace in every]
    line = {
        **learned,
        "reward": sum(values) / len(values) if values else None,
        "success": sum(goal is not None and goal.success for goal in goals) / len(every),
        "unscored": len(every) - len(values),
        "violations": sum(bool(trace.violations) for trace in every) / len(every),
        "flat_groups": flat / len(groups),
        "episodes": len(every),
        "tokens_sampled": sum(trace.tokens_sampled for trace in every),
        "tokens_trained": sum(int(part.mask_BT.sum()) for part in packed),
        "positions_forwarded": sum(part.ids.size(1) for part in packed),
        "positions_in_rows": sum(
            len(row.prompt) + len(row.sampled)
            for trajectory, advantage in zip(trajectories, worth, strict=True)
            if advantage
            for row in trajectory.rows
        ),
    }
    return line, [each for each, advantage in zip(trajectories, worth, strict=True) if advantage]


def _certificate(
    groups: Sequence[Sequence[Trace]], learned: Sequence[Trajectory]
) -> list[tuple[str, int, ModelCall]]:
    """Which calls of which traces an adapter learned from."""
    traces = {trace.id: trace for group in groups for trace in group}
    return [
        (each.trace_id, row.number, traces[each.trace_id].model_calls[row.number])
        for each in learned
        for row in each.rows
    ]
