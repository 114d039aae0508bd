"""Forks: a run continues once more from a decision, from its LangGraph checkpoint and on a clone of its world as it was there.

    points = Points(saver, thread, world.clone, calls)       # a callback of the run; compile the graph with `saver`
    await graph.ainvoke(given, {..., "callbacks": [points]}, durability="sync")
    other = await points.taken[2].branch()                   # a checkpointer that holds the third decision alone
    await graph.copy({"checkpointer": other}).ainvoke(None, {"configurable": {"thread_id": thread}})

Works on any compiled graph. What its nodes do outside of it has to be in a world that can be cloned.
"""

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

from stateset_agents.errors import BadInput
from stateset_agents.trace import Forked, ModelCall, Sampling, Trace


class World(Protocol):
    """What the nodes of a graph act on."""

    def clone(self) -> Self:
        """An independent copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A superstep that calls the model, with the state before it."""

    calls: tuple[ModelCall, ...]
    """Model calls that ended before it."""
    checkpoint: CheckpointTuple
    world: Any
    """The result of `snapshot` there."""

    async def branch(self) -> InMemorySaver:
        """A new checkpointer in which this point is the newest checkpoint of its thread."""
        saver = InMemorySaver()
        where = self.checkpoint.config["configurable"]
        at: RunnableConfig = {
            "configurable": {"thread_id": where["thread_id"], "checkpoint_ns": where.get("checkpoint_ns", "")}
        }  # fmt: skip
        checkpoint = self.checkpoint.checkpoint
        await saver.aput(
            at, checkpoint, self.checkpoint.metadata, dict(checkpoint["channel_versions"])
        )
        return saver


class Points(BaseCallbackHandler):
    """Takes a point before every superstep of one thread that calls a model. `snapshot` is called at the beginning of each
    superstep; it returns a clone of the world and of everything else that a fork needs."""

    run_inline = True  # in the event loop, before the node has done anything
    raise_error = True

    def __init__(
        self, saver: InMemorySaver, thread: str, snapshot: Callable[[], Any],
        calls: Callable[[], tuple[ModelCall, ...]],
    ) -> None:  # fmt: skip
        self.taken: list[Point] = []
        self._passed: list[Point] = []
        """Points of supersteps that called no model."""
        self._saver, self._thread = saver, thread
        self._snapshot, self._calls = snapshot, calls
        self._begun: Point | None = None
        self._taken = False

    def on_chain_start(
        self, serialized: dict[str, Any] | None, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        about = metadata or {}
        within = "|" in str(about.get("langgraph_checkpoint_ns", ""))  # a graph inside this one
        if about.get("thread_id") != self._thread or within:
            return
        checkpoint = self._saver.get_tuple(
            {"configurable": {"thread_id": self._thread, "checkpoint_ns": ""}}
        )
        if checkpoint is None:
            return
        known = self._begun.checkpoint.checkpoint["id"] if self._begun else None
        if checkpoint.checkpoint["id"] != known:
            if self._begun is not None and not self._taken:
                self._passed.append(self._begun)
            self._begun = Point(calls=self._calls(), checkpoint=checkpoint, world=self._snapshot())
            self._taken = False

    def on_chat_model_start(
        self, serialized: dict[str, Any] | None, messages: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        about = metadata or {}
        if about.get("thread_id") == self._thread and self._begun is not None and not self._taken:
            self.taken.append(self._begun)
            self._taken = True

    async def close_taken(self) -> None:
        """Release the worlds that were kept for forks, of an episode that came to nothing."""
        for point in self.taken:
            await close_world(point.world)
        self.taken = []

    async def close_unused(self) -> None:
        """Release the worlds that no fork will begin with."""
        last = [self._begun] if self._begun is not None and not self._taken else []
        for point in (*self._passed, *last):
            await close_world(point.world)
        self._passed, self._begun = [], None


def turns_before(point: Point) -> int:
    """The number of the customer's turns before that point."""
    messages = point.checkpoint.checkpoint["channel_values"].get("messages", [])
    return sum(isinstance(message, HumanMessage) for message in messages)


_hinted = threading.Event()
"""Whether a process was told of calls that cannot be forked."""
Fork = Callable[[Sampling, Point], Awaitable[Trace]]


class ForkableEpisode:
    """An episode that was played: its trace, and the decisions from which it can be continued otherwise."""

    def __init__(self, trace: Trace, points: Sequence[Point], fork: Fork) -> None:
        self.trace = trace
        self._points = {len(point.calls): point for point in points}
        if len(points) < len(trace.model_calls) and not _hinted.is_set():
            _hinted.set()
            logging.getLogger(__name__).warning(
                "%d of %d model calls of an episode cannot be forked: they are made inside a node that has called the model "
                "before, and a fork begins with a node. Give each call a node of its own.",
                len(trace.model_calls) - len(points), len(trace.model_calls),
            )  # fmt: skip
        self._fork = fork

    @property
    def decisions(self) -> list[int]:
        """Numbers of the model calls before which it can be forked."""
        return sorted(self._points)

    async def fork(self, call: int, sampling: Sampling) -> Trace:
        """The episode continued otherwise: its model calls before number `call`, and others from there on."""
        trace = await self._fork(sampling, self._points[call])
        return trace.model_copy(update={"forked": Forked(trace=self.trace.id, calls=call)})

    async def close(self) -> None:
        """Release the worlds that were kept for forks."""
        for point in self._points.values():
            await close_world(point.world)
        self._points = {}


async def close_world(world: Any) -> None:
    """Close a world that can be closed, at once or by awaiting it."""
    close = getattr(world, "close", None)
    closing = close() if callable(close) else None
    if inspect.isawaitable(closing):
        await closing


def checked_world(world: Any) -> World:
    """Returns `world`. Raises BadInput if it cannot be cloned."""
    if not callable(getattr(world, "clone", None)):
        raise BadInput(
            f"Expected a world that can be cloned to fork from, found that {type(world).__name__} has no `clone`. Train without "
            "--forks, or give episodes a world of their own."
        )
    if inspect.iscoroutinefunction(world.clone):
        raise BadInput(
            f"Expected a world whose `clone` is a plain method, found that {type(world).__name__}'s is async: a fork is taken in "
            "the middle of a step."
        )
    cloneable: World = world
    return cloneable
