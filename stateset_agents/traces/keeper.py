"""Where a recorder leaves what it hears."""

from collections.abc import Callable, Sequence
from typing import Protocol

from stateset_agents.trace import ModelCall, ToolCall, Trace


class Keeper(Protocol):
    """A TraceStore is one. What is `make` is made later, by whoever keeps it."""

    def begin(self, trace: Trace) -> object: ...

    def add(self, run: str, make: Callable[[], ModelCall | ToolCall]) -> object: ...

    def discard(self, run: str, numbers: Sequence[int]) -> object: ...

    def end(self, run: str, make: Callable[[], Trace]) -> object: ...


class Episode:
    """A keeper in memory, of the calls alone: for roll-outs, which know the rest."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, ModelCall]] = []

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(call for _, call in self._calls)

    def begin(self, trace: Trace) -> None: ...

    def add(self, run: str, make: Callable[[], ModelCall | ToolCall]) -> None:
        made = make()
        if isinstance(made, ModelCall):
            self._calls.append((run, made))

    def discard(self, run: str, numbers: Sequence[int]) -> None:
        mine = [place for place, (owner, _) in enumerate(self._calls) if owner == run]
        for number in numbers:
            call = self._calls[mine[number]][1]
            self._calls[mine[number]] = (run, call.model_copy(update={"discarded": True}))

    def end(self, run: str, make: Callable[[], Trace]) -> None: ...
