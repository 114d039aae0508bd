"""A reward reads traces and says what each was worth; what it cannot score it says nothing about.

    class Polite(EachTrace):                       # one trace at a time
        name, declaration = "polite", Declaration(low=0.0, high=1.0, reads=("messages",))

        def score(self, trace: Trace) -> Score | None:
            return Score(value=float("please" in trace.agent_text))

A reward that compares the traces of a group has `__call__` itself. `stateset-agents rewards check MODULE:NAME` says whether it
keeps what it declares, and `rewards audit` what it can be talked into.
"""

import abc
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from stateset_agents.frozen import Frozen
from stateset_agents.trace import Trace


class Score(Frozen):
    """What one trace was worth, and why."""

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
    """What a reward declares of itself."""

    version: str = "1"
    """Changes when the same trace may score otherwise; scores are cached by it."""
    low: float = -1e9
    high: float = 1e9
    """Its values lie from `low` to `high`. One that never pays (`high` 0) only takes away."""
    reads: tuple[str, ...] = ()
    """Fields of a trace; () for any."""
    cost: Literal["offline", "model", "network"] = "offline"
    """What a score costs: nothing but CPU, a forward pass of a model, or calls that are billed."""
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
    """Scores traces, a group at once. None: expected but could not be scored; never read as 0.

    It may have an `declaration`; without one it declares nothing (`declaration_of`).
    """

    @property
    def name(self) -> str: ...

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]: ...


def declaration_of(reward: Any) -> Declaration:
    """What a reward declares of itself, or that it declares nothing."""
    declaration = getattr(reward, "declaration", None)
    return declaration if isinstance(declaration, Declaration) else Declaration()


def version_of(reward: Any) -> str:
    """What a reward's scores are kept by: its class, declared version and settings, with those of the rewards in it."""
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
    """A reward that scores each trace for itself."""

    name: str
    declaration = Declaration()

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        return [self.score(trace) if scorable(trace) else None for trace in traces]

    @abc.abstractmethod
    def score(self, trace: Trace) -> Score | None:
        """What a trace was worth that is `scorable`; None where this reward has nothing to say of it."""


def scorable(trace: Trace) -> bool:
    """Whether a trace says anything of its policy: not one that failed, broke off, or holds nothing."""
    happened = trace.messages or trace.model_calls or trace.tool_calls or trace.output
    return bool(happened) and trace.status not in ("failed", "interrupted")
