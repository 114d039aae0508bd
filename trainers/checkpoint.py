"""A step is committed whole or not at all: written beside, synced, then renamed into place."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

KEEP = 3
"""Committed steps whose weights are kept; older ones leave only their line in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The newest committed step of a run."""

    step: int
    adapter: Path
    optimiser: dict[str, Any]
    log: list[dict[str, Any]]


class Checkpoints:
    """`run/steps/000007/` holds the adapter after step 7, the optimiser and the log. Nothing of a
    step is drawn from a global random state, so none is kept."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "steps"
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".writing-*"):
            shutil.rmtree(leftover)

    def adapter(self, step: int) -> Path:
        return self.folder / f"{step:06d}" / "adapter"

    def commit(
        self,
        step: int,
        model: PeftModel,
        optimiser: torch.optim.Optimizer,
        log: list[dict[str, Any]],
    ) -> Path:
        """Write step `step` and make it the newest. Raises OSError where the disk is full."""
        beside = self.folder / f".writing-{step:06d}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        model.save_pretrained(beside / "adapter")
        torch.save(optimiser.state_dict(), beside / "optimiser.pt")
        (beside / "log.json").write_text(json.dumps(log))
        for path in sorted(beside.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        final = self.folder / f"{step:06d}"
        beside.rename(final)
        handle = os.open(self.folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        for old in sorted(self.folder.glob("[0-9]*"))[:-KEEP]:
            shutil.rmtree(old)
        return final / "adapter"

    def newest(self) -> Committed | None:
        """The last committed step, or None before the first."""
        steps = sorted(self.folder.glob("[0-9]*"))
        if not steps:
            return None
        folder = steps[-1]
        return Committed(
            step=int(folder.name),
            adapter=folder / "adapter",
            optimiser=torch.load(folder / "optimiser.pt", weights_only=True),
            log=json.loads((folder / "log.json").read_text()),
        )
