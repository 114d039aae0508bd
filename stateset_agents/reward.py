"""A reward reads traces and says what each was worth; what it cannot score it says nothing about."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import Field, model_validator

from stateset_agents.scenario import Frozen
from stateset_agents.trace import Trace


class Score(Frozen):
    """What one trace was worth, and why."""

    value: float
    parts: Mapping[str, float] = Field(default_factory=dict)
    reason: str = ""

    @model_validator(mode="after")
    def _finite(self) -> "Score":
        if not -1e9 < self.value < 1e9:
            raise ValueError(f"Expected a finite reward, found {self.value!r}.")
        return self


def checked_weight(weight: float, name: str) -> float:
    """`weight`. Raises ValueError unless it is a positive finite number."""
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(
            f"Expected a positive weight for {name!r}, found {weight}. "
            "Leave a reward out instead of weighting it 0."
        )
    return weight


class Reward(Protocol):
    """Scores traces, a group at once. None: expected but could not be scored; never read as 0."""

    @property
    def name(self) -> str: ...

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]: ...
