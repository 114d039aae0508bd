"""Trackers: JSON lines always; TensorBoard, W&B, MLflow or trackio by name, through accelerate."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.step_log import StepLog

NAMES = ("tensorboard", "wandb", "mlflow", "trackio")


def check_names(names: Sequence[str]) -> None:
    """Raises BadInput for an unknown or missing tracker."""
    from importlib.util import find_spec

    for name in names:
        if name not in NAMES:
            raise BadInput(f"--log: expected one of {', '.join(NAMES)}, found {name!r}.")
        if find_spec(name) is None:
            raise BadInput(
                f"--log {name}: expected the package {name}, found none: pip install {name}."
            )


class RunLog:
    """`run/log.jsonl` has a line a step, as the checkpoint has it; trackers get its numbers, nested ones as
    `nodes/policy/reward`."""

    def __init__(
        self,
        run: Path,
        names: Sequence[str],
        config: TrainConfig,
        log: Sequence[StepLog] = (),
    ) -> None:
        """`log` has the committed steps; lines that a killed process did not write are written now."""
        check_names(names)
        self._file = run / "log.jsonl"
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        missing = log[len(lines) :]
        self._trackers: list[Any] = []
        for name in dict.fromkeys(names):
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            kind = LOGGER_TYPE_TO_CLASS[name]
            options = {"logging_dir": str(run)} if kind.requires_logging_directory else {}
            project = os.environ.get("WANDB_PROJECT", "stateset-agents")
            tracker = kind("log" if name == "tensorboard" else project, **options)
            tracker.start() if hasattr(tracker, "start") else None
            tracker.store_init_configuration(_plain(config.model_dump(mode="json")))
            self._trackers.append(tracker)
        for line in missing:
            self.add(line)

    def add(self, log: StepLog) -> None:
        """Append a step's line."""
        line = log.to_json()
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = flat(line)
        for tracker in self._trackers:
            tracker.log(numbers, step=log.step)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def flat(line: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The numbers of a line, by their path."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{above}{name}/")
        elif isinstance(value, bool | int | float):
            numbers[above + name] = float(value)
    return numbers


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in a form that every tracker accepts."""
    return {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in values.items()
    }
