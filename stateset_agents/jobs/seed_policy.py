"""Trains the seed policy on generated transcripts and writes its model card."""

import collections
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stateset_agents.tools.scenarios.demonstrations import Message, demonstrate
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.tools.toolset import SERVICE_TOOLS
from stateset_agents.trainers import seed_policy
from stateset_agents.trainers.seed_policy import SeedConfig

DEMONSTRATION_SEED = 7


def build_seed(out: Path, *, steps: int, seed: int) -> None:
    """Train, then write model, tokenizer and README.md to `out`."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    rng = random.Random(DEMONSTRATION_SEED)

    def conversations() -> Iterator[tuple[Message, ...]]:
        for scenario in scenarios(seed=DEMONSTRATION_SEED, split="train"):
            made = demonstrate(scenario, rng)
            seen[made.intent, made.flaw or "right"] += 1
            yield made.messages

    config = SeedConfig(steps=steps, seed=seed)
    began = time.perf_counter()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
    ) as progress:  # fmt: skip
        task = progress.add_task("transcripts for the tokenizer", total=None, loss=0.0)

        def show(stage: str, done: int, total: int, loss: float) -> None:
            progress.update(task, description=stage, completed=done, total=total, loss=loss)

        seed_policy.build(
            conversations(), [tool.schema() for tool in SERVICE_TOOLS], out, config, show
        )
    minutes = (time.perf_counter() - began) / 60
    (out / "README.md").write_text(model_card(config, seen, minutes))
    print(f"seed policy in {out} after {minutes:.0f} minutes")


def model_card(
    config: SeedConfig, seen: "collections.Counter[tuple[str, str]]", minutes: float
) -> str:
    """The model card: what it was trained on, including the flaws."""
    intents = sorted({intent for intent, _ in seen})
    rows = []
    for intent in intents:
        total = sum(count for (name, _), count in seen.items() if name == intent)
        for (name, flaw), count in sorted(seen.items()):
            if name == intent:
                rows.append(f"| {intent} | {flaw} | {count / total:.1%} |")
    return "\n".join(
        [
            "# Seed policy",
            "",
            "A Qwen2 of about three million parameters, raised by `stateset-agents policy build`. It starts from",
            "weights that can repeat what they have seen (an induction circuit in its first two layers) and know",
            f"nothing else; {config.copy_steps} steps of copying random tokens and {config.steps} steps on generated",
            "transcripts of the five service intents follow. The transcripts are imperfect on purpose, as people's",
            "are; it imitates their flaws, and GRPO is there to unlearn them. It knows this shop's tools and",
            "nothing else: not a chat model.",
            "",
            "| intent | demonstration | share |",
            "|---|---|---|",
            *rows,
            "",
            f"Built in {minutes:.0f} minutes with {config.threads} threads. Settings:",
            f"`{json.dumps(asdict(config))}`",
            "",
        ]
    )
