"""The trace store: an append is acknowledged once it is durable; nobody waits for it.

with TraceStore("traces.db") as store:              # or postgresql://…
    store.append(trace)                             # a whole trace
    store.begin(trace)                              # or as it happens: what is acknowledged survives the process
    store.add_call(trace.id, 0, lambda: call)
    store.end(trace.id, lambda: trace)
"""

import json
import os
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.reward import Score
from stateset_agents.trace import Feedback, ModelCall, ToolCall, Trace
from stateset_agents.traces.codec import Coder, model_json
from stateset_agents.traces.reader import TraceReader
from stateset_agents.traces.records import (
    COLUMNS,
    DISCARD,
    END,
    GONE,
    GRADE,
    RUN,
    TOOL,
    call_row,
    feedback_row,
    is_forgotten,
    migrate,
    run_row,
)
from stateset_agents.traces.tables import Tables, opened
from stateset_agents.traces.writer import Statement, Writer, Written

T = TypeVar("T")


@dataclass(slots=True)
class _Open:
    """A run that began in this process and has not ended."""

    coder: Coder
    phase: str
    step: int


class TraceStore(TraceReader):
    """A store at a path or a `postgresql://` URL. A store of a newer version is refused. An unclosed store is closed, with
    everything queued, when it is collected or the process ends. After a fork the child has its own connection."""

    def __init__(self, place: Path | str, *, create: bool = True) -> None:
        self._at = place
        self._start(create)
        _stores.add(self)

    def _start(self, create: bool) -> None:
        self._tables = opened(self._at, create=create)
        self.place = self._tables.place
        self._runs: dict[str, _Open] = {}
        self._forgotten: set[str] = set()
        """Running runs that were erased."""
        migrate(self._tables)
        self._writer = Writer(self._tables, lost=partial(_not_stored, self._runs))
        self._closing = weakref.finalize(self, self._writer.close)

    def _forked(self) -> None:
        """In a forked child: the parent's thread does not exist, and the parent's connection must not be touched."""
        _parents.append((self._tables, self._writer))
        self._closing.detach()
        self._start(create=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # Writing: everything is made into rows by the writer's thread, and costs the caller an append to a queue.

    def append(
        self, trace: Trace, *, phase: str = "", step: int = 0, score: Score | None = None, replace: bool = False
    ) -> Written:  # fmt: skip
        """Queue a trace; wait for what it returns, or `await` it, to know that it is on disk. With `replace` it takes the place
        of one with its id."""

        def rows() -> list[Statement]:
            coder = Coder()
            calls = [call_row(trace.id, n, coder, call) for n, call in enumerate(trace.model_calls)]
            feedback = [feedback_row(trace.id, item) for item in trace.feedback]
            gone: list[Statement] = [(GONE, (trace.id,))] if replace else []
            return [*gone, (RUN, run_row(trace, phase, step, score)), *calls, *feedback]

        return self._writer.put(rows, run=trace.id)

    def begin(self, trace: Trace, *, phase: str = "", step: int = 0) -> Written:
        """Queue the beginning of a run, whose record is `interrupted` until `end`."""

        def rows() -> list[Statement]:
            started = trace.model_copy(update={"status": "interrupted"})
            self._runs[trace.id] = _Open(Coder(), phase, step)
            return [(RUN, run_row(started, phase, step, None))]

        return self._writer.put(rows, run=trace.id)

    def add_call(self, run: str, number: int, make: Callable[[], ModelCall]) -> Written:
        """Queue the `number`-th model call of a run, counted from 0; `make` is called by the writer's thread."""
        return self._writer.put(partial(self._call_rows, run, number, make), run=run)

    def add_tool(self, run: str, make: Callable[[], ToolCall]) -> Written:
        """Queue a tool call of a run; `make` is called by the writer's thread."""
        return self._writer.put(partial(self._tool_rows, run, make), run=run)

    def _call_rows(self, run: str, number: int, make: Callable[[], ModelCall]) -> list[Statement]:
        coder = self._coder(run)
        if coder is None:
            return []
        try:
            return [call_row(run, number, coder, make())]
        except Exception:
            coder.lost += 1
            raise

    def _tool_rows(self, run: str, make: Callable[[], ToolCall]) -> list[Statement]:
        coder = self._coder(run)
        if coder is None:
            return []
        try:
            body = zlib.compress(model_json(make()), 1)
        except Exception:
            coder.lost += 1
            raise
        coder.tools += 1
        return [(TOOL, (run, coder.tools, body))]

    def _coder(self, run: str) -> Coder | None:
        """An open run of this process; None if it was erased."""
        if run in self._forgotten:
            return None
        if run not in self._runs:
            raise RunBroken(f"Expected a run that was begun in this process, found {run!r}.")
        return self._runs[run].coder

    def discard(self, run: str, numbers: Sequence[int]) -> Written:
        """Queue that calls belong to an attempt that failed."""
        return self._writer.put(lambda: [(DISCARD, (run, n)) for n in numbers], run=run)

    def end(self, run: str, make: Callable[[], Trace], *, score: Score | None = None) -> Written:
        """Queue the end of a run: the trace without what `add_call` and `add_tool` have stored."""

        def rows() -> list[Statement]:
            coder = self._coder(run)
            if coder is None:
                self._forgotten.discard(run)
                return []
            of, trace = self._runs.pop(run), make()
            if self.is_forgotten(trace):
                return [(GONE, (run,))]
            if coder.lost:
                problem = f"{coder.lost} of its calls could not be stored"
                error = f"{trace.error}; {problem}" if trace.error else problem
                trace = trace.model_copy(update={"lost": coder.lost, "error": error})
            row = dict(zip(COLUMNS, run_row(trace, of.phase, of.step, score), strict=True))
            row["exactness"] = coder.exactness or row["exactness"]
            row["version"] = coder.version or row["version"]
            return [(END, tuple(row[name] for name in COLUMNS))]

        return self._writer.put(rows, run=run)

    def grade(self, run: str, score: Score | None) -> Written:
        """Queue a new score for a run, which replaces the old one; None removes it."""
        value = None if score is None else score.value
        encoded = None if score is None else json.dumps(score.model_dump(mode="json"))
        return self._writer.put(lambda: [(GRADE, (value, encoded, run))])

    def feedback(
        self, key: str, value: float, *, trace: str = "", thread: str = "", response: str = "",
        comment: str = "",
    ) -> int:  # fmt: skip
        """Attach feedback to a trace, to all runs of a thread, or to the run with a response id (a model's, or our endpoint's).
        Returns the number of traces. Personal data in the comment is redacted. Raises BadInput if there is none."""
        from stateset_agents.traces.redaction import Redactor  # what it needs takes long to import

        given = [name for name in (trace, thread, response) if name]
        if len(given) != 1:
            raise BadInput("Expected one of trace, thread or response, found "
                           f"{len(given)}.")  # fmt: skip
        redactor = Redactor()
        if trace:
            runs = [self.run_id(trace)]
        else:
            query = (
                "SELECT id FROM runs WHERE thread = ? OR thread = ?"
                if thread
                else "SELECT run FROM calls WHERE response_id = ? UNION SELECT id FROM runs WHERE id = ?"
            )
            values = (
                (thread, redactor.thread(thread))
                if thread
                else (response, response.removeprefix("chatcmpl-"))
            )
            runs = [str(row[0]) for row in self._tables.read(query, *values)]
        if not runs:
            raise BadInput(f"Expected a trace of {given[0]!r}, found none in {self.place}.")
        feedback = Feedback(key=key, value=value, comment=redactor.text(comment), at=time.time())
        self._writer.put(lambda: [feedback_row(run, feedback) for run in runs]).result()
        return len(runs)

    def discard_from(self, phase: str, step: int) -> None:
        """Remove traces of steps that were never committed, with their certificates."""
        uncommitted = "SELECT id FROM runs WHERE phase = ? AND step >= ?"

        def erase() -> None:
            with self._tables.transaction():
                self._tables.write(
                    f"DELETE FROM trained WHERE run IN ({uncommitted})", [(phase, step)]
                )
                self._tables.write(
                    "DELETE FROM runs WHERE phase = ? AND step >= ?", [(phase, step)]
                )

        self._writer.alone(erase)

    def exclusively(self, work: Callable[[Tables], T]) -> T:
        """Run `work` on the tables in the writer's thread, after everything queued. Returns its result."""
        results: list[T] = []
        self._writer.alone(lambda: results.append(work(self._tables)))
        return results[0]

    def abandon(self, runs: Iterable[str]) -> None:
        """Mark running runs as erased: nothing more of them is written. Call it in the writer's thread."""
        for run in self._runs.keys() & set(runs):
            self._forgotten.add(run)
            del self._runs[run]

    def is_forgotten(self, trace: Trace) -> bool:
        """Whether a trace belongs to a customer who was erased after it began."""
        return is_forgotten(self._tables, trace)

    def put(self, statements: Sequence[Statement]) -> Written:
        """Queue statements for the tables (`traces/tables.py`)."""
        return self._writer.put(lambda: list(statements))

    def flush(self) -> None:
        """Wait until everything queued is on disk."""
        self._writer.put(list).result()

    def close(self) -> None:
        """Write everything queued, then close."""
        self._closing()


_stores: "weakref.WeakSet[TraceStore]" = weakref.WeakSet()
_parents: list[object] = []


def _after_fork() -> None:
    for store in list(_stores):
        if store._closing.alive:
            store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _not_stored(runs: dict[str, _Open], run: str) -> None:
    """Later calls of the run must not continue a call that was not stored."""
    if run in runs:
        runs[run].coder.restart()
