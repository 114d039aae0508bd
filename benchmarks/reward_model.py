"""A neural reward model from 2,000 generated preferences: how long it takes, and how well it ranks what it has not seen.

python -m benchmarks.reward_model [FOLDER]          # about 8 minutes on two cores
"""

import asyncio
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from stateset_agents.graphs.mixed_quality import SALAD, pairs, played, variants
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.trainers.reward_model import NeuralReward, train_reward_model

PAIRS = 2000
UNSEEN = 60
"""Held-out scenarios of which every variant is ranked."""


async def main(folder: Path) -> bool:
    torch.set_num_threads(2)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    every = itertools.islice(scenarios(seed=77, split="train", intents=ALL_INTENTS), PAIRS + 100)
    pairs_made = [
        (better.trace, worse.trace) async for better, worse in pairs(list(every), seed=1)
    ][:PAIRS]
    generated = time.perf_counter() - began
    result = train_reward_model(
        SEED_POLICY, pairs_made, folder, epochs=1.0, report=lambda line: print(line, flush=True)
    )
    minutes = (time.perf_counter() - began) / 60
    print(
        f"{len(pairs_made)} preferences in {generated:.0f} s, all in {minutes:.1f} minutes; {result}"
    )
    reward = NeuralReward(folder)
    rng, right, total, last = random.Random(3), 0, 0, 0
    for scenario in itertools.islice(
        scenarios(seed=905_000, split="held_out", intents=ALL_INTENTS), UNSEEN
    ):
        ways = variants(scenario, rng)
        made = [await played(scenario, kind, acts) for kind, acts in ways.items()]
        scores = await reward([variant.trace for variant in made])
        values = {
            variant.kind: score.parts["chance"]
            for variant, score in zip(made, scores, strict=True)
            if score is not None
        }
        failed = [variant.kind for variant in made if not variant.success]
        right += sum(values["right"] > values[kind] for kind in failed)
        total += len(failed)
        last += min(values, key=values.__getitem__) == SALAD
    print(
        f"unseen shops, customers and words: {right} of {total} pairs right, word salad last of all in {last} of {UNSEEN}"
    )
    return minutes <= 10 and result.accuracy >= 0.85 and last >= 0.9 * UNSEEN


if __name__ == "__main__":
    where = Path(sys.argv[1]) if sys.argv[1:] else Path(tempfile.mkdtemp(prefix="reward-model-"))
    sys.exit(0 if asyncio.run(main(where)) else 1)
