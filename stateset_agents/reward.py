"""A reward scores traces; a trace that it cannot score gets None.

    class Polite(EachTrace):                       # one trace at a time
        name, declaration = "polite", Declaration(low=0.0, high=1.0, reads=("messages",))

        def score(self, trace: Trace) -> Score | None:
            return Score(value=float("please" in trace.agent_text))

A reward that compares the traces of a group defines `__call__` itself. `stateset-agents rewards check MODULE:NAME` checks its
declaration, and `rewards audit` attacks it.
"""

import abc
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from stateset_agents.plain import Frozen
from stateset_agents.trace import Trace


class Score(Frozen):
    """The score of one trace, with reasons."""

    value: float
    parts: Mapping[str, float] = Field(default_factory=dict)
    reason: str = ""

    @model_validator(mode="after")
    def _finite(self) -> "Score":
        for name, value in {"": self.value, **self.parts}.items():
            if not -1e9 < value < 1e9:
                what = f"part {name!r}" if name else "reward"
                raise ValueError(f"Expected a finite {what}, found {value!r}.")
        return self


class Declaration(Frozen):
    """A reward's declaration."""

    version: str = "1"
    """Must change when the same trace may get another score; part of the cache's key."""
    low: float = -1e9
    high: float = 1e9
    """Its values are from `low` to `high`. With `high` 0 it only subtracts."""
    reads: tuple[str, ...] = ()
    """Fields of a trace that it reads; () for any."""
    cost: Literal["offline", "model", "network"] = "offline"
    """The cost of a score: CPU only, a forward pass of a model, or billed calls."""
    compares: bool = False
    """Whether a trace's score depends on the others of its group."""


def checked_weight(weight: float, name: str) -> float:
    """`weight`. Raises ValueError unless it is a positive finite number."""
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(
            f"Expected a positive weight for {name!r}, found {weight}. "
            "Leave a reward out instead of weighting it 0."
        )
    return weight


class Reward(Protocol):
    """Scores traces, a group at once. None: could not be scored; never read as 0. It can have a `declaration` (see
    `declaration_of`)."""

    @property
    def name(self) -> str: ...

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]: ...


def declaration_of(reward: Any) -> Declaration:
    """A reward's declaration, or the empty one."""
    declaration = getattr(reward, "declaration", None)
    return declaration if isinstance(declaration, Declaration) else Declaration()


def version_of(reward: Any) -> str:
    """The cache key of a reward: its class, declared version and settings, including inner rewards."""
    return hashlib.sha256(json.dumps(_settings(reward), sort_keys=True).encode()).hexdigest()


def _settings(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return sorted((json.dumps(_settings(k)), _settings(v)) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return [_settings(item) for item in value]
    attributes = {
        name: attribute
        for name, attribute in getattr(value, "__dict__", {}).items()
        if name[:1] != "_" and name != "report"
    }
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    declared = declaration_of(value).version if hasattr(value, "declaration") else ""
    return [
        kind.__module__,
        kind.__qualname__,
        declared,
        {name: _settings(attribute) for name, attribute in attributes.items()},
    ]


class EachTrace(abc.ABC):
    """A reward that scores each trace separately."""

    name: str
    declaration = Declaration()

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        return [self.score(trace) if scorable(trace) else None for trace in traces]

    @abc.abstractmethod
    def score(self, trace: Trace) -> Score | None:
        """The score of a `scorable` trace; None if this reward cannot score it."""


def scorable(trace: Trace) -> bool:
    """Whether a trace can be scored: not if it failed, was interrupted, or is empty."""
    happened = trace.messages or trace.model_calls or trace.tool_calls or trace.output
    return bool(happened) and trace.status not in ("failed", "interrupted")
