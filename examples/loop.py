"""Reinforcement learning on a LangGraph graph: the whole of it in one file, to be read from top to bottom.

    python -m examples.loop --steps 8          # a minute and a half on two cores

Each step goes the same way, and every line of it is here:

    scenarios -> episodes on the graph -> rewards -> advantages -> one optimiser step -> the new version is served

`stateset-agents train` does the same with what a long run needs beside it: checkpoints that survive a kill, forks, overlap of
roll-outs and training, seven algorithms, limits, reports. For a graph of your own take `CustomGraph(graph, name).play_episode` in
place of `play_episode`.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from stateset_agents import Sampling, Scenario, Score, Trace, TraceStore
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import PolicyServer, policy_server
from stateset_agents.policy.chat_model import Policy
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.policy.weight_files import model_path
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.trainers.learner_thread import LearnerThread
from stateset_agents.trainers.model import Model, load_model
from stateset_agents.trainers.packing.batches import Sample, batches
from stateset_agents.trainers.reading import Reading, logprobs
from stateset_agents.trajectory import trajectory

TEMPERATURE = 1.0
MAX_TOKENS = 96
"""Tokens that a model call may sample."""
CLIP = 0.2
"""How far an importance ratio may leave 1 in the direction that its advantage pushes it."""
MAX_GRAD_NORM = 1.0


async def train(
    run: Path,
    *,
    steps: int,
    groups: int,
    group_size: int,
    held_out: int,
    learning_rate: float,
    seed: int,
) -> tuple[float, float]:
    """Train the seed policy. Returns its success on held-out scenarios before and after."""
    run.mkdir(parents=True)
    config = JobConfig()
    every = scenarios(seed=seed, split="train")
    unseen = list(itertools.islice(scenarios(seed=90_000, split="held_out"), held_out))
    model = load_model(model_path(config.model), config)  # with a fresh LoRA
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate)
    reward, learner = OutcomeReward(), LearnerThread()

    with TraceStore(run / "traces.db") as store:
        # An OpenAI-compatible server samples, in a process of its own: the embedded engine, or vLLM with STATESET_ENGINE=vllm.
        async with policy_server(config, run, training=True) as server:
            policy = chat_model(server, model_path(config.model))
            version = server.name
            before = await success(policy, version, unseen)
            print(f"before: {before:.0%} of {held_out} held-out scenarios", flush=True)

            for step in range(1, steps + 1):
                began = time.perf_counter()

                # 1. Episodes: every scenario is played several times, by the version that is served now.
                drawn = list(itertools.islice(every, groups))
                traces = await play_groups(policy, version, drawn, group_size, f"{seed}/{step}")

                # 2. Rewards: what really happened in the shop, held against the scenario's goal.
                scores = [await reward(group) for group in traces]

                # 3. Advantages: how much better an episode did than the others of its scenario.
                samples = []
                for group, graded in zip(traces, scores, strict=True):
                    for trace, advantage in zip(group, advantages(graded), strict=True):
                        tokens = trajectory(trace)  # the very tokens that the server sampled
                        worth = (advantage,) * len(tokens.rows)  # the same for each model call
                        samples.append(Sample(trajectory=tokens, advantages=worth))

                # 4. One optimiser step. Torch would hold up the event loop, so it has a thread.
                await learner.run(optimise, model, optimiser, samples)

                # 5. The new version is saved, and served under a name of its own.
                version = f"{run.name}-v{step}"
                await learner.run(model.save_pretrained, run / version)
                await server.publisher.publish(version, run / version)

                # What was learned from can be read again: `stateset-agents traces show`.
                for group, graded in zip(traces, scores, strict=True):
                    for trace, score in zip(group, graded, strict=True):
                        await store.append(trace, phase="train", step=step, score=score)
                mean = statistics.fmean(s.value for graded in scores for s in graded if s)
                seconds = time.perf_counter() - began
                print(f"step {step}: reward {mean:.3f}, {seconds:.0f} s, now {version}", flush=True)

            learner.close()
            after = await success(policy, version, unseen)
            print(f"after: {after:.0%} of {held_out} held-out scenarios", flush=True)
    return before, after


def chat_model(server: PolicyServer, path: str) -> Policy:
    """What the graph's nodes call. It renders prompts here, so that later turns extend the very tokens of earlier ones."""
    return server.policy().model_copy(update={"render": renderer_of(path).prompt})


async def play_groups(
    policy: Policy, version: str, drawn: Sequence[Scenario], group_size: int, seed: str
) -> list[list[Trace]]:
    """`group_size` episodes of each scenario. An episode is a run of the LangGraph graph against a simulated customer, on a
    clone of the shop."""

    async def group(scenario: Scenario) -> list[Trace]:
        episodes = (
            play_episode(scenario, policy, sampling(version, f"{seed}/{scenario.id}/{number}"))
            for number in range(group_size)
        )
        return list(await asyncio.gather(*episodes))

    return list(await asyncio.gather(*(group(scenario) for scenario in drawn)))


def sampling(version: str, seed: str) -> Sampling:
    """How one episode samples; each has a seed of its own."""
    return Sampling(
        version=version,
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
        seed=random.Random(seed).getrandbits(31),
    )


async def success(policy: Policy, version: str, unseen: Sequence[Scenario]) -> float:
    """The share of held-out scenarios whose goal is reached."""
    groups = await play_groups(policy, version, unseen, 1, "held-out")
    goals = [group[0].goal_score for group in groups]
    return statistics.fmean(goal is not None and goal.success for goal in goals)


def advantages(scores: Sequence[Score | None]) -> list[float]:
    """Rewards minus their group's mean (Dr. GRPO, arXiv 2503.20783). An episode without a score is no evidence: 0."""
    values = [score.value for score in scores if score is not None]
    mean = statistics.fmean(values) if values else 0.0
    return [0.0 if score is None else score.value - mean for score in scores]


def optimise(model: Model, optimiser: torch.optim.Optimizer, samples: Sequence[Sample]) -> None:
    """One step up the clipped policy gradient (PPO, arXiv 1707.06347), over all sampled tokens of the step."""
    tokens = sum(sample.tokens for sample in samples)
    optimiser.zero_grad()
    for batch in batches(samples, budget=6144):
        # (B, T): a row is all that was sampled in an episode. Prefixes that rows share go through the model once.
        now_BT, _ = logprobs(model, batch, temperature=TEMPERATURE, reading=Reading(shared=True))
        ratio_BT = torch.exp(now_BT - batch.recorded_BT)
        clipped_BT = ratio_BT.clamp(1 - CLIP, 1 + CLIP)
        gain_BT = torch.minimum(ratio_BT * batch.advantages_BT, clipped_BT * batch.advantages_BT)
        loss = -(gain_BT * batch.mask_BT).sum() / tokens
        torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--groups", type=int, default=8, help="Scenarios a step.")
    parser.add_argument("--group-size", type=int, default=8, help="Episodes a scenario.")
    parser.add_argument("--held-out", type=int, default=100, help="Scenarios to measure on.")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs") / time.strftime("loop-%H%M%S"))
    options = vars(parser.parse_args())
    torch.set_num_threads(1)  # the engine has the other core
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    asyncio.run(train(options.pop("out"), **options))


if __name__ == "__main__":
    main()
