"""Receivers of a recorder's events."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from stateset_agents.trace import ModelCall, ToolCall, Trace

Texts = bool | Literal["answers"]
"""What a call keeps besides its tokens: its messages and its answer, nothing, or its answer alone."""


class TraceSink(Protocol):
    """What a recorder writes to, such as a TraceStore. `make` may be called later, by a writer's thread."""

    def begin(self, trace: Trace) -> object: ...

    def add_call(self, run: str, number: int, make: Callable[[], ModelCall]) -> object:
        """`number` counts a run's model calls from 0, in the order in which they ended."""

    def add_tool(self, run: str, make: Callable[[], ToolCall]) -> object: ...

    def discard(self, run: str, numbers: Sequence[int]) -> object: ...

    def end(self, run: str, make: Callable[[], Trace]) -> object: ...


class CallBuffer:
    """A sink in memory for the calls of an episode."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], ModelCall] = {}
        self.tools: list[ToolCall] = []
        """Tool calls in the order in which they ended, also those of functions that report to nobody."""

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(self._calls.values())

    def begin(self, trace: Trace) -> None: ...

    def add_call(self, run: str, number: int, make: Callable[[], ModelCall]) -> None:
        self._calls[run, number] = make()

    def add_tool(self, run: str, make: Callable[[], ToolCall]) -> None:
        self.tools.append(make())

    def discard(self, run: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            call = self._calls[run, number]
            self._calls[run, number] = call.model_copy(update={"discarded": True})

    def end(self, run: str, make: Callable[[], Trace]) -> None: ...
