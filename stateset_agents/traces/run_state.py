"""What a recorder knows of a run while it lasts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from langgraph.constants import END

from stateset_agents.trace import ToolCall, Trace

HINT = (
    "model calls were made that are in no trace, because LangChain's callbacks did not reach them. A node that calls its model in a "
    "thread of its own has to pass the context on: pool.submit(contextvars.copy_context().run, model.invoke, messages)"
)
MAX_IDS = 20_000
"""Ids of earlier runs that are remembered, to tell runs of the same id apart."""


@dataclass(slots=True)
class Run:
    """A run from its outermost call to its end."""

    trace: Trace
    root: int
    clock: float
    input: Any = None
    calls: int = 0
    waiting: bool = False
    """Whether a node of the run itself asked somebody; a graph that a node calls may wait for itself."""
    at_end: bool = False
    """Whether the node that ended last leads to the end."""
    customer: str = ""
    """The customer, as soon as it is known."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Number of attempts of each task, by checkpoint namespace."""
    open: set[int] = field(default_factory=set)
    """Ids of running model and tool calls."""
    waits_for: tuple[Any, ...] = ()
    """The interrupts that it waits for."""
    failed: dict[str, Callable[..., ToolCall]] = field(default_factory=dict)
    """Tools that raised, by call: the graph may answer for them in words of its own."""
    requested: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Tool calls that the model asked for and no tool run was seen of: name and arguments by id."""


@dataclass(slots=True)
class Attempt:
    """One attempt of one node, perhaps inside another graph's node."""

    node: str
    namespace: str
    number: int
    above: "Attempt | None"
    calls: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Place:
    """The place of an event in a run."""

    run: Run
    attempt: Attempt | None
    opens: bool
    """Whether this call is the attempt itself."""


def is_own(place: Place) -> bool:
    """Whether a place is in a node of the run itself, and not in a graph inside a node."""
    return place.attempt is not None and place.attempt.above is None


def copied(value: Any) -> Any:
    """A shallow copy: an app's lists and dicts change later."""
    if isinstance(value, dict):
        return {key: list(v) if isinstance(v, list) else v for key, v in value.items()}
    return list(value) if isinstance(value, list) else value


def last_nodes(graph: Any) -> frozenset[str]:
    """The nodes from which a graph goes nowhere but to its end."""
    try:
        edges = graph.get_graph().edges
    except Exception:  # noqa: BLE001 (a runnable that cannot be drawn: then its ends are not known)
        return frozenset()
    ways: dict[str, set[str]] = {}
    for edge in edges:
        ways.setdefault(edge.source, set()).add(edge.target)
    return frozenset(name for name, targets in ways.items() if targets == {END})
