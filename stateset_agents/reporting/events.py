"""Events that a job reports: one dataclass each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from stateset_agents.evaluation import Measurement
from stateset_agents.trainers.step_log import StepLog


@dataclass(frozen=True, slots=True)
class ServerSaid:
    """What happened to a policy server, in a sentence."""

    message: str


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The policy is served."""

    training: int
    """Training scenarios."""
    held_out: int
    """Held-out scenarios."""
    run: Path


@dataclass(frozen=True, slots=True)
class MeasurementStarted:
    phase: str
    """before, greedy_before, after, greedy_after or evaluate."""
    episodes: int


@dataclass(frozen=True, slots=True)
class CollectionStarted:
    episodes: int


@dataclass(frozen=True, slots=True)
class EpisodeEnded:
    """An episode of a measurement or a collection has ended."""


@dataclass(frozen=True, slots=True)
class MeasurementEnded:
    phase: str
    result: Measurement


@dataclass(frozen=True, slots=True)
class WarmStarted:
    """Traces are imitated before the first episode."""

    traces: int


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    steps: int


@dataclass(frozen=True, slots=True)
class StepEnded:
    log: StepLog


@dataclass(frozen=True, slots=True)
class JobEnded:
    """All results are written."""


Event: TypeAlias = (
    ServerSaid | JobStarted | MeasurementStarted | CollectionStarted | EpisodeEnded | MeasurementEnded | WarmStarted
    | TrainingStarted | StepEnded | JobEnded
)  # fmt: skip
Report = Callable[[Event], None]
