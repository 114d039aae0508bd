"""Checkpoints: a step is written to a new folder, synced, then renamed into place, so it is complete or absent."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from stateset_agents.files import replace_text
from stateset_agents.trainers.config import DEFAULT_ADAPTER
from stateset_agents.trainers.model import Model
from stateset_agents.trainers.step_log import StepLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The newest committed step of a run."""

    step: int
    weights: Path
    optimiser: dict[str, Any]
    random: torch.Tensor
    """torch's global random state, which LoRA's dropout draws from."""
    state: dict[str, Any]
    """Further state for a resume: multipliers, plans, settings."""
    log: list[StepLog]


class Checkpoints:
    """`run/steps/000007/` holds what is after step 7: the adapter (`adapter/`, or `adapter/<name>/` each where there are several;
    the whole model where all of it is trained), the optimiser, random state, the rest of the run's state, and the log."""

    def __init__(self, run: Path, keep: int = 3, every: int = 0) -> None:
        self.folder = run / "steps"
        self.keep, self.every = keep, every
        """Committed steps whose weights are kept: the last `keep`, and each `every`-th; of others only the log line is kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".writing-*"):
            shutil.rmtree(leftover)

    def weights(self, step: int, adapter: str = DEFAULT_ADAPTER) -> Path:
        whole = self.folder / f"{step:06d}" / "adapter"
        return whole if adapter == DEFAULT_ADAPTER else whole / adapter

    def commit(
        self,
        step: int,
        model: Model,
        optimiser: torch.optim.Optimizer,
        state: dict[str, Any],
        log: list[StepLog],
    ) -> None:
        """Write step `step` and make it the newest. Raises OSError if the disk is full."""
        beside = self.folder / f".writing-{step:06d}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_weights(model, beside / "adapter")
        torch.save(optimiser.state_dict(), beside / "optimiser.pt")
        torch.save(torch.get_rng_state(), beside / "random.pt")
        (beside / "state.json").write_text(json.dumps(state))
        (beside / "log.json").write_text(_lines(log))
        for path in sorted(beside.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        beside.rename(self.folder / f"{step:06d}")
        handle = os.open(self.folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        for old in sorted(self.folder.glob("[0-9]*"))[: -self.keep]:
            if not self.every or int(old.name) % self.every:
                shutil.rmtree(old)

    def rewrite_log(self, step: int, log: list[StepLog]) -> None:
        """Replace the log of a committed step atomically."""
        replace_text(self.folder / f"{step:06d}" / "log.json", _lines(log))

    def newest(self) -> Committed | None:
        """The last committed step, or None before the first."""
        steps = sorted(self.folder.glob("[0-9]*"))
        if not steps:
            return None
        folder = steps[-1]
        return Committed(
            step=int(folder.name),
            weights=folder / "adapter",
            optimiser=torch.load(folder / "optimiser.pt", weights_only=True),
            random=torch.load(folder / "random.pt", weights_only=True),
            state=json.loads((folder / "state.json").read_text()),
            log=list(map(StepLog.from_json, json.loads((folder / "log.json").read_text()))),
        )


def _lines(log: list[StepLog]) -> str:
    return json.dumps([line.to_json() for line in log])


def save_weights(model: Model, place: Path) -> None:
    """Adapters in PEFT's format, or a whole model in transformers'."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(place), save_embedding_layers=False)
    else:
        model.save_pretrained(place)
