"""Training a reward model on preferences: a store's, or generated ones."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stateset_agents.graphs.mixed_quality import pairs as mixed_pairs
from stateset_agents.policy.weight_files import model_path
from stateset_agents.settings import load_settings
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.trace import Trace
from stateset_agents.traces.dataset import LEARNED_FROM, is_measurement
from stateset_agents.traces.store import TraceStore

Preferences = list[tuple[Trace, Trace]]
"""Pairs of a better trace and a worse one."""


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """The preferences to train a reward model on."""

    store: str | None = None
    """A store's path, or a run's folder; default: generated preferences."""
    feedback: str | None = None
    """The kind of feedback that decides which is better; default: verified goals."""
    pairs: int = 2000
    """The most preferences."""
    model: str = "seed"
    epochs: float = 1.0
    seed: int = 0


async def reward_model_job(
    config: RewardModelConfig, out: Path, report: Callable[[str], None]
) -> dict[str, Any]:
    """Train a reward model and write it to `out`. Returns its results on held-out preferences. Raises BadInput for too few."""
    import torch

    from stateset_agents.trainers.reward_model import train_reward_model

    torch.set_num_threads(load_settings().threads)
    if config.store is not None:
        preferences = _stored(config.store, config.feedback)
    else:
        preferences = await _generated(config, report)
    out.mkdir(parents=True, exist_ok=True)
    result = await asyncio.to_thread(
        train_reward_model,
        model_path(config.model),
        preferences[: config.pairs],
        out,
        seed=config.seed,
        epochs=config.epochs,
        report=report,
    )
    return asdict(result)


def _stored(store: str, feedback: str | None) -> Preferences:
    from stateset_agents.trainers.reward_model import preferences

    path = str(Path(store) / "traces.db") if Path(store).is_dir() else store
    with TraceStore(path, create=False) as opened:
        traces = [t for t in opened.traces(where=LEARNED_FROM) if not is_measurement(t)]
        return preferences(traces, feedback=feedback)


async def _generated(config: RewardModelConfig, report: Callable[[str], None]) -> Preferences:
    report(f"playing episodes for {config.pairs} preferences")
    endless = scenarios(seed=config.seed + 1, split="train", intents=ALL_INTENTS)
    chosen = list(itertools.islice(endless, config.pairs + config.pairs // 10))
    preferences: Preferences = []
    async for better, worse in mixed_pairs(chosen, seed=config.seed):
        preferences.append((better.trace, worse.trace))
        if len(preferences) % 500 == 0:
            report(f"{len(preferences)} preferences")
    return preferences
