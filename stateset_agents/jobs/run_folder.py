"""A run's folder: its config, its clock, and a link to its newest weights."""

import asyncio
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.files import replace_text
from stateset_agents.jobs.config import JobConfig
from stateset_agents.trainers.concurrency import MAX_EPISODES


def new_run(root: Path) -> Path:
    """A fresh folder for a run."""
    run = root / time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(2):
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            run = run.with_name(f"{run.name.split('_')[0]}_{number}")
        except OSError as error:
            raise BadInput(f"Expected to write to {str(root)!r}, found {error.strerror}.") from None
    raise AssertionError


def write_config(run: Path, config: JobConfig) -> None:
    (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def link_weights(run: Path, weights: Path) -> None:
    """Link `run/adapter` to the newest weights."""
    link = run / "adapter"
    if not link.is_symlink():
        link.symlink_to(weights.relative_to(run))


class Clock:
    """Seconds that a run has worked, including the time before a kill; every reading is stored in the run."""

    def __init__(self, run: Path) -> None:
        self._file = run / "seconds.json"
        self._earlier = float(json.loads(self._file.read_text())) if self._file.is_file() else 0.0
        self._began = time.perf_counter()

    def read(self) -> float:
        now = self._earlier + time.perf_counter() - self._began
        replace_text(self._file, json.dumps(now))
        return now


def make_room_for_threads(config: JobConfig) -> None:
    """Allow a thread for each episode, since synchronous nodes run in threads, plus some for writing and training. Python's
    default is a few more than there are cores."""
    threads = ThreadPoolExecutor((config.concurrency or MAX_EPISODES) + 16)
    asyncio.get_running_loop().set_default_executor(threads)
