"""The trace store: an append is acknowledged once it is durable; nobody waits for it.

with TraceStore("traces.db") as store:              # or postgresql://…
    store.append(trace)                             # a whole trace
    store.begin(run); store.add(run.id, call)       # or as it happens: what is acknowledged survives the process
    store.end(trace)
"""

import json
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from stateset_agents.errors import BadInput
from stateset_agents.reward import Score
from stateset_agents.trace import Feedback, ModelCall, ToolCall, Trace
from stateset_agents.traces.coding import Coded, Coder, digest
from stateset_agents.traces.tables import Row, opened
from stateset_agents.traces.writer import Statement, Writer

_COLUMNS = (
    "id", "thread", "graph", "phase", "step", "scenario", "intent", "customer", "status", "exactness", "version",
    "success", "reward", "started", "head", "score",
)  # fmt: skip
_ENDS = (
    "thread", "scenario", "intent", "customer", "status", "exactness", "version", "success", "reward", "head", "score"
)  # fmt: skip
_RUN = f"INSERT INTO runs VALUES({', '.join('?' * len(_COLUMNS))})"
_END = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in _ENDS)} WHERE id = ?"
_CALL = "INSERT INTO calls VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TOOL = "INSERT INTO tools VALUES(?, ?, ?)"
_DISCARD = "UPDATE calls SET discarded = 1 WHERE run = ? AND number = ?"
_FEEDBACK = "INSERT INTO feedback VALUES(?, ?, ?, ?, ?, ?)"
_TRAINED = "INSERT INTO trained VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


class TraceStore:
    """A store at a path or a `postgresql://` URL. One that a newer version wrote is refused."""

    def __init__(self, place: Path | str, *, create: bool = True) -> None:
        self._tables = opened(place, create=create)
        self.place = self._tables.place
        self._coders: dict[str, Coder] = {}
        self._migrate()
        self._writer = Writer(self._tables, lost=self._not_stored)

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
        self, trace: Trace, *, phase: str = "", step: int = 0, score: Score | None = None
    ) -> Future[None]:
        """Queue a trace; the future resolves when it is on disk, or carries the error."""

        def rows() -> list[Statement]:
            coder = Coder()
            calls = [_call(trace.id, coder, call) for call in trace.model_calls]
            said = [_said(trace.id, one) for one in trace.feedback]
            return [(_RUN, _run(trace, phase, step, score)), *calls, *said]

        return self._writer.put(rows)

    def begin(self, trace: Trace, *, phase: str = "", step: int = 0) -> Future[None]:
        """Queue the beginning of a run, whose record is `interrupted` until `end`."""

        def rows() -> list[Statement]:
            started = trace.model_copy(update={"status": "interrupted"})
            self._coders[trace.id] = Coder()
            return [(_RUN, _run(started, phase, step, None))]

        return self._writer.put(rows)

    def add(self, run: str, make: Callable[[], ModelCall | ToolCall]) -> Future[None]:
        """Queue what a run did; `make` is called by the writer's thread."""

        def rows() -> list[Statement]:
            made, coder = make(), self._coders[run]
            if isinstance(made, ModelCall):
                return [_call(run, coder, made)]
            coder.tools += 1
            return [(_TOOL, (run, coder.tools, _packed(made.model_dump_json())))]

        return self._writer.put(rows)

    def _not_stored(self, run: object) -> None:
        """What comes next of the run may not go on from what is not there."""
        if run in self._coders:
            self._coders[str(run)].restart()

    def discard(self, run: str, numbers: Sequence[int]) -> Future[None]:
        """Queue that calls belong to an attempt that failed."""
        return self._writer.put(lambda: [(_DISCARD, (run, number)) for number in numbers])

    def end(
        self, run: str, make: Callable[[], Trace], *, score: Score | None = None
    ) -> Future[None]:
        """Queue the end of a run: the trace without what `add` has stored."""

        def rows() -> list[Statement]:
            trace, coder = make(), self._coders.pop(run)
            row = dict(zip(_COLUMNS, _run(trace, "", 0, score), strict=True))
            row["exactness"] = coder.exactness or row["exactness"]
            row["version"] = coder.version or row["version"]
            return [(_END, (*(row[name] for name in _ENDS), run))]

        return self._writer.put(rows)

    def feedback(
        self, key: str, value: float, *, trace: str = "", thread: str = "", response: str = "",
        comment: str = "",
    ) -> int:  # fmt: skip
        """Attach feedback to a trace, to all runs of a thread, or to the run that a response id (a model's, or our
        endpoint's) belongs to; how many traces got it. Raises BadInput where there is none."""
        given = [name for name in (trace, thread, response) if name]
        if len(given) != 1:
            raise BadInput("Expected one of trace, thread or response, found "
                           f"{len(given)}.")  # fmt: skip
        if trace:
            runs = [self._run_id(trace)]
        else:
            query = (
                "SELECT id FROM runs WHERE thread = ?"
                if thread
                else "SELECT run FROM calls WHERE response_id = ? UNION SELECT id FROM runs WHERE id = ?"
            )
            values = (thread,) if thread else (response, response.removeprefix("chatcmpl-"))
            runs = [str(row[0]) for row in self._tables.read(query, *values)]
        if not runs:
            raise BadInput(f"Expected a trace of {given[0]!r}, found none in {self.place}.")
        said = Feedback(key=key, value=value, comment=comment, at=time.time())
        self._writer.put(lambda: [_said(run, said) for run in runs]).result()
        return len(runs)

    def certify(self, adapter: str, rows: Sequence[tuple[str, int, ModelCall]]) -> Future[None]:
        """Queue that an adapter learned from calls, given as trace, number and call."""
        found = [
            (run, number, adapter, call.response_id, digest(call), call.version)
            for run, number, call in rows
        ]
        return self._writer.put(lambda: [(_TRAINED, row) for row in found])

    def discard_from(self, phase: str, step: int) -> None:
        """Remove traces of steps that were never committed, and what was learned from them."""
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

    def forget(self, customer: str) -> tuple[int, list[str]]:
        """Erase every run of a customer; how many there were, and the adapters that learned from them."""
        if not customer:
            raise BadInput("Expected a customer's id, found ''.")
        adapters = [
            str(row[0])
            for row in self._tables.read(
                "SELECT DISTINCT adapter FROM trained JOIN runs ON runs.id = trained.run "
                "WHERE customer = ? ORDER BY adapter",
                customer,
            )
        ]
        return self._delete("customer = ?", customer), adapters

    def prune(self, *, days: float | None = None, megabytes: float | None = None) -> int:
        """Erase the oldest runs: those that began more than so many days ago, and then as many as there are
        beyond a size. How many it were."""
        removed = 0
        if days is not None:
            removed += self._delete("started < ?", time.time() - days * 86_400)
        if megabytes is not None:
            room, doomed = megabytes * 1e6, []
            for run, size in self._tables.read(SIZES):
                room -= size
                if room < 0:
                    doomed.append(str(run))
            for run in doomed:
                removed += self._delete("id = ?", run, shrink=False)
        self._writer.alone(self._tables.shrink)
        return removed

    def flush(self) -> None:
        """Wait until all that was queued is on disk."""
        self._writer.put(list).result()

    def close(self) -> None:
        """Write what waits, then close."""
        self._writer.close()
        self._tables.close()

    # Reading.

    def traces(
        self, *, phase: str | None = None, thread: str | None = None, where: str = "1 = 1",
        values: Sequence[object] = (), limit: int = -1,
    ) -> Iterator[Trace]:  # fmt: skip
        """Stored traces, oldest first, read one by one."""
        clauses, given = [where], list(values)
        for name, value in (("phase", phase), ("thread", thread)):
            if value is not None:
                clauses.append(f"{name} = ?")
                given.append(value)
        for number, row in enumerate(
            self._tables.read(
                f"SELECT id, status, head FROM runs WHERE {' AND '.join(clauses)} ORDER BY step, started, id",
                *given,
            )
        ):
            if number == limit:
                return
            yield self.trace_of(row)

    def graded(self, *, phase: str | None = None) -> Iterator[tuple[str, int, str | None, Trace]]:
        """Phase, step, score (as JSON) and trace, oldest first, one by one."""
        where, values = ("phase = ?", (phase,)) if phase is not None else ("1 = 1", ())
        for row in self._tables.read(
            f"SELECT phase, step, score, id, status, head FROM runs WHERE {where} ORDER BY step, started, id",
            *values,
        ):
            yield str(row[0]), int(row[1]), row[2], self.trace_of(row[3:])

    def ids(self) -> Iterator[Row]:
        """The ids of all traces, a row each."""
        return self._tables.read("SELECT id FROM runs")

    def get(self, trace_id: str) -> Trace:
        """A trace by its id or an unambiguous beginning of it."""
        return next(self.traces(where="id = ?", values=[self._run_id(trace_id)]))

    def thread(self, thread: str) -> Trace:
        """All runs of a thread as one trace: the calls of all, the conversation and the end of the last."""
        runs = list(self.traces(thread=thread))
        if not runs:
            raise BadInput(f"Expected runs of thread {thread!r}, found none in {self.place}.")
        return runs[-1].model_copy(
            update={
                "model_calls": tuple(call for run in runs for call in run.model_calls),
                "feedback": tuple(said for run in runs for said in run.feedback),
                "started": runs[0].started,
                "seconds": sum(run.seconds for run in runs),
            }
        )

    def newest(self, *, phase: str | None = None, limit: int = 20) -> list[dict[str, object]]:
        """The newest traces as plain columns, without their bodies."""
        names = (
            "id",
            "phase",
            "step",
            "intent",
            "status",
            "exactness",
            "version",
            "success",
            "reward",
        )
        where, values = ("phase = ?", (phase,)) if phase is not None else ("1 = 1", ())
        rows = self._tables.read(
            f"SELECT {', '.join(names)} FROM runs WHERE {where} ORDER BY started DESC LIMIT ?", *values, limit
        )  # fmt: skip
        return [dict(zip(names, row, strict=True)) for row in rows]

    def count(self, phase: str | None = None) -> int:
        where, values = ("phase = ?", (phase,)) if phase is not None else ("1 = 1", ())
        ((count,),) = self._tables.read(f"SELECT COUNT(*) FROM runs WHERE {where}", *values)
        return int(count)

    def certified(self) -> int:
        """Rows that an adapter learned from."""
        ((count,),) = self._tables.read("SELECT COUNT(*) FROM trained")
        return int(count)

    def rows(self) -> Iterator[Row]:
        """Id, status and head of each run, oldest first; `trace_of` reads them."""
        return self._tables.read("SELECT id, status, head FROM runs ORDER BY started, id")

    def read(self, sql: str, *values: object) -> Iterator[Row]:
        """Rows of a query of one's own, for who knows the tables (`traces/tables.py`)."""
        return self._tables.read(sql, *values)

    def trace_of(self, row: Row) -> Trace:
        run, status, head = row
        fields = json.loads(zlib.decompress(head))
        trace = Trace.model_validate({**fields, "status": status})
        coder = Coder()
        calls = []
        for number, discarded, *columns in self._tables.read(
            "SELECT number, discarded, base, shared, prompt, sampled, logprobs, about, digest FROM calls WHERE run = ? "
            "ORDER BY number",
            run,
        ):
            coded = Coded(**dict(zip(_CODED, columns, strict=True)))
            call = coder.decode(coded, number)
            calls.append(call.model_copy(update={"discarded": True}) if discarded else call)
        tools = [
            ToolCall.model_validate_json(zlib.decompress(body))
            for (body,) in self._tables.read(
                "SELECT body FROM tools WHERE run = ? ORDER BY number", run
            )
        ]
        said = [
            Feedback(key=about, value=value, comment=comment, at=at)
            for about, value, comment, at in self._tables.read(
                "SELECT about, value, comment, at FROM feedback WHERE run = ? ORDER BY at, id", run
            )
        ]
        return trace.model_copy(
            update={
                "model_calls": tuple(calls),
                "tool_calls": (*trace.tool_calls, *tools),
                "feedback": tuple(said),
            }
        )

    def _run_id(self, beginning: str) -> str:
        rows = list(
            self._tables.read(
                "SELECT id FROM runs WHERE substr(id, 1, ?) = ? LIMIT 2", len(beginning), beginning
            )
        )
        if len(rows) != 1:
            found = "none" if not rows else "several"
            raise BadInput(f"Expected one trace whose id starts with {beginning!r}, found {found}.")
        return str(rows[0][0])

    def _delete(self, where: str, *values: object, shrink: bool = True) -> int:
        found: list[int] = []
        self._writer.alone(lambda: found.append(self._erase(where, values)))
        if shrink and found[0]:
            self._writer.alone(self._tables.shrink)
        return found[0]

    def _erase(self, where: str, values: Sequence[object]) -> int:
        with self._tables.transaction():
            return self._tables.write(f"DELETE FROM runs WHERE {where}", [values])

    def _migrate(self) -> None:
        """Traces of a store of version 1, which kept each as one body."""
        try:
            old = list(self._tables.read("SELECT phase, step, reward, score, body FROM traces_1"))
        except Exception as error:
            if "traces_1" not in str(error):
                raise
            return
        with self._tables.transaction():
            for phase, step, _, score, body in old:
                fields = json.loads(zlib.decompress(body))
                trace = Trace.model_validate(fields)
                told = None if score is None else Score.model_validate_json(score)
                coder = Coder()
                self._tables.write(_RUN, [_run(trace, phase, step, told)])
                for call in trace.model_calls:
                    sql, row = _call(trace.id, coder, call)
                    self._tables.write(sql, [row])
            self._tables.write("DROP TABLE traces_1", [()])


_CODED = ("base", "shared", "prompt", "sampled", "logprobs", "about", "digest")
SIZES = (
    "SELECT runs.id, LENGTH(head) + COALESCE((SELECT SUM(LENGTH(prompt) + LENGTH(sampled) + LENGTH(logprobs) + "
    "LENGTH(about)) FROM calls WHERE calls.run = runs.id), 0) + COALESCE((SELECT SUM(LENGTH(body)) FROM tools "
    "WHERE tools.run = runs.id), 0) FROM runs ORDER BY started DESC, runs.id"
)


def _packed(text: str) -> bytes:
    return zlib.compress(text.encode(), 1)


def _run(trace: Trace, phase: str, step: int, score: Score | None) -> Row:
    goal = trace.goal_score
    return (
        trace.id, trace.thread, trace.graph, phase, step,
        trace.scenario.id if trace.scenario else None,
        trace.scenario.intent if trace.scenario else None,
        trace.customer, trace.status, trace.exactness,
        trace.model_calls[-1].version if trace.model_calls else "",
        None if goal is None else int(goal.success),
        None if score is None else score.value,
        trace.started,
        _packed(trace.model_dump_json(exclude={"model_calls", "feedback"}, exclude_defaults=True)),
        None if score is None else json.dumps(score.model_dump(mode="json")),
    )  # fmt: skip


def _said(run: str, feedback: Feedback) -> Statement:
    return _FEEDBACK, (
        uuid.uuid4().hex, run, feedback.key, feedback.value, feedback.comment, feedback.at,
    )  # fmt: skip


def _call(run: str, coder: Coder, call: ModelCall) -> Statement:
    number = len(coder)
    coded = coder.encode(call)
    return _CALL, (
        run, number, call.response_id, call.version, coded.digest, int(call.discarded), coded.base,
        coded.shared, coded.prompt, coded.sampled, coded.logprobs, coded.about,
    )  # fmt: skip
