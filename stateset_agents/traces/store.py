"""The trace store: an append is acknowledged once it is durable; nobody waits for it.

with TraceStore("traces.db") as store:              # or postgresql://…
    store.append(trace)                             # a whole trace
    store.begin(trace)                              # or as it happens: what is acknowledged survives the process
    store.add_call(trace.id, 0, lambda: call)
    store.end(trace.id, lambda: trace)
"""

import hashlib
import json
import os
import time
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.reward import Score
from stateset_agents.trace import Feedback, ModelCall, ToolCall, Trace
from stateset_agents.traces.codec import Coded, Coder, digest, model_json
from stateset_agents.traces.tables import Row, opened
from stateset_agents.traces.writer import Statement, Writer, Written

_COLUMNS = (
    "id", "thread", "graph", "phase", "step", "scenario", "intent", "customer", "status", "exactness", "version",
    "success", "reward", "started", "head", "score",
)  # fmt: skip
_AT_END = (
    "thread", "scenario", "intent", "customer", "status", "exactness", "version", "success", "reward", "head", "score"
)  # fmt: skip
_RUN = f"INSERT INTO runs({', '.join(_COLUMNS)}) VALUES({', '.join('?' * len(_COLUMNS))})"
_END = f"{_RUN} ON CONFLICT(id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _AT_END)}"
"""Where the beginning could not be stored, the end still is."""
_CALL = "INSERT INTO calls VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TOOL = "INSERT INTO tools VALUES(?, ?, ?)"
_DISCARD = "UPDATE calls SET discarded = 1 WHERE run = ? AND number = ?"
_GRADE = "UPDATE runs SET reward = ?, score = ? WHERE id = ?"
_GONE = "DELETE FROM runs WHERE id = ?"
_FEEDBACK = "INSERT INTO feedback VALUES(?, ?, ?, ?, ?, ?)"
_TRAINED = (
    "INSERT INTO trained VALUES(?, ?, ?, ?, ?, ?, COALESCE((SELECT customer FROM runs WHERE id = ?), '')) "
    "ON CONFLICT DO NOTHING"
)
_ADAPTER = "INSERT INTO adapters VALUES(?, ?) ON CONFLICT DO NOTHING"
_MINE = (
    "(customer = ? OR (customer = '' AND thread <> '' AND thread IN "
    "(SELECT thread FROM runs WHERE customer = ?)))"
)
"""A customer's runs, with those of their threads from before it was known who speaks."""
_LEARNED = (
    "WITH RECURSIVE learned(name) AS (SELECT adapter FROM trained WHERE customer = ? OR run IN "
    f"(SELECT id FROM runs WHERE {_MINE}) UNION SELECT adapters.name FROM adapters JOIN learned ON "
    "adapters.parent = learned.name) SELECT name FROM learned ORDER BY name"
)


@dataclass(slots=True)
class _Open:
    """A run that was begun here and has not ended."""

    coder: Coder
    phase: str
    step: int


class TraceStore:
    """A store at a path or a `postgresql://` URL. One that a newer version wrote is refused.

    A store that nobody closes is closed when it is collected, or when the process ends, with all that was queued. A
    process that forks has its own in the child.
    """

    def __init__(self, place: Path | str, *, create: bool = True) -> None:
        self._at = place
        self._start(create)
        _stores.add(self)

    def _start(self, create: bool) -> None:
        self._tables = opened(self._at, create=create)
        self.place = self._tables.place
        self._runs: dict[str, _Open] = {}
        self._forgotten: set[str] = set()
        """Runs that were erased while they were under way."""
        self._migrate()
        self._writer = Writer(self._tables, lost=partial(_not_stored, self._runs))
        self._closing = weakref.finalize(self, self._writer.close)

    def _forked(self) -> None:
        """In a child: its parent's thread is not there, and its parent's connection must be left alone."""
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
            calls = [_call(trace.id, n, coder, call) for n, call in enumerate(trace.model_calls)]
            said = [_said(trace.id, one) for one in trace.feedback]
            gone: list[Statement] = [(_GONE, (trace.id,))] if replace else []
            return [*gone, (_RUN, _run(trace, phase, step, score)), *calls, *said]

        return self._writer.put(rows, run=trace.id)

    def begin(self, trace: Trace, *, phase: str = "", step: int = 0) -> Written:
        """Queue the beginning of a run, whose record is `interrupted` until `end`."""

        def rows() -> list[Statement]:
            started = trace.model_copy(update={"status": "interrupted"})
            self._runs[trace.id] = _Open(Coder(), phase, step)
            return [(_RUN, _run(started, phase, step, None))]

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
            return [_call(run, number, coder, make())]
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
        return [(_TOOL, (run, coder.tools, body))]

    def _coder(self, run: str) -> Coder | None:
        """Of a run that was begun here; None where it was erased since."""
        if run in self._forgotten:
            return None
        if run not in self._runs:
            raise RunBroken(f"Expected a run that was begun in this process, found {run!r}.")
        return self._runs[run].coder

    def discard(self, run: str, numbers: Sequence[int]) -> Written:
        """Queue that calls belong to an attempt that failed."""
        return self._writer.put(lambda: [(_DISCARD, (run, n)) for n in numbers], run=run)

    def end(self, run: str, make: Callable[[], Trace], *, score: Score | None = None) -> Written:
        """Queue the end of a run: the trace without what `add_call` and `add_tool` have stored."""

        def rows() -> list[Statement]:
            coder = self._coder(run)
            if coder is None:
                self._forgotten.discard(run)
                return []
            of, trace = self._runs.pop(run), make()
            if self.forgets(trace):
                return [(_GONE, (run,))]
            if coder.lost:
                told = f"{coder.lost} of its calls could not be stored"
                error = f"{trace.error}; {told}" if trace.error else told
                trace = trace.model_copy(update={"lost": coder.lost, "error": error})
            row = dict(zip(_COLUMNS, _run(trace, of.phase, of.step, score), strict=True))
            row["exactness"] = coder.exactness or row["exactness"]
            row["version"] = coder.version or row["version"]
            return [(_END, tuple(row[name] for name in _COLUMNS))]

        return self._writer.put(rows, run=run)

    def grade(self, run: str, score: Score | None) -> Written:
        """Queue another score for a run, in the place of the one it has; None for none."""
        value = None if score is None else score.value
        told = None if score is None else json.dumps(score.model_dump(mode="json"))
        return self._writer.put(lambda: [(_GRADE, (value, told, run))])

    def feedback(
        self, key: str, value: float, *, trace: str = "", thread: str = "", response: str = "",
        comment: str = "",
    ) -> int:  # fmt: skip
        """Attach feedback to a trace, to all runs of a thread, or to the run that a response id (a model's, or our
        endpoint's) belongs to; how many traces got it. Personal data in the comment is redacted. Raises BadInput
        where there is none."""
        from stateset_agents.traces.redaction import Redactor  # what it needs takes long to import

        given = [name for name in (trace, thread, response) if name]
        if len(given) != 1:
            raise BadInput("Expected one of trace, thread or response, found "
                           f"{len(given)}.")  # fmt: skip
        redactor = Redactor()
        if trace:
            runs = [self._run_id(trace)]
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
        said = Feedback(key=key, value=value, comment=redactor.text(comment), at=time.time())
        self._writer.put(lambda: [_said(run, said) for run in runs]).result()
        return len(runs)

    def certify(
        self, adapter: str, rows: Sequence[tuple[str, int, ModelCall]], *, parent: str = ""
    ) -> Written:
        """Queue that an adapter, which went on from `parent`, learned from calls, given as trace, number and call."""
        found = [
            (run, number, adapter, call.response_id, digest(call), call.version, run)
            for run, number, call in rows
        ]
        return self._writer.put(
            lambda: [(_ADAPTER, (adapter, parent)), *((_TRAINED, row) for row in found)]
        )

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
        """Erase every run of a customer; how many there were, and the adapters that learned from them, with those that
        training went on to from there."""
        if not customer:
            raise BadInput("Expected a customer's id, found ''.")
        adapters: list[str] = []
        mine = (customer, customer)

        def erase() -> None:  # in the writer's turn: what was queued before is erased as well
            adapters.extend(str(row[0]) for row in self._tables.read(_LEARNED, customer, *mine))
            here = {
                str(row[0])
                for row in self._tables.read(f"SELECT id FROM runs WHERE {_MINE}", *mine)
            }
            self._forgotten |= here & self._runs.keys()
            for run in here & self._runs.keys():
                del self._runs[run]
            with self._tables.transaction():
                found.append(self._tables.write(f"DELETE FROM runs WHERE {_MINE}", [mine]))
                self._tables.write(
                    "UPDATE trained SET customer = '' WHERE customer = ?", [(customer,)]
                )
                self._tables.write(
                    "INSERT INTO forgotten VALUES(?, ?) ON CONFLICT(customer) DO UPDATE SET at = excluded.at",
                    [(_hashed(customer), time.time())],
                )

        found: list[int] = []
        self._writer.alone(erase)
        self._writer.alone(self._tables.shrink)
        return found[0], adapters

    def forgets(self, trace: Trace) -> bool:
        """Whether a trace is of a customer who was forgotten after it: it must not come back by an import."""
        if not trace.customer:
            return False
        rows = self._tables.read(
            "SELECT at FROM forgotten WHERE customer = ?", _hashed(trace.customer)
        )
        return any(trace.started < at for (at,) in rows)

    def prune(self, *, days: float | None = None, megabytes: float | None = None) -> int:
        """Erase the oldest runs: those that began more than so many days ago, and then as many as there are
        beyond a size. How many it were."""
        removed = 0
        if days is not None:
            removed += self._delete("started < ?", (time.time() - days * 86_400,))
        if megabytes is not None:
            room, doomed = megabytes * 1e6, []
            for run, size in self._tables.read(SIZES):
                room -= size
                if room < 0:
                    doomed.append(str(run))
            removed += self._delete("id = ?", *((run,) for run in doomed))
        if removed:
            self._writer.alone(self._tables.shrink)
        return removed

    def flush(self) -> None:
        """Wait until all that was queued is on disk."""
        self._writer.put(list).result()

    def close(self) -> None:
        """Write what waits, then close."""
        self._closing()

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
                "lost": sum(run.lost for run in runs),
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
        """The trace whose id, status and head these are. What of it cannot be read is counted in `lost`, and told in
        its error."""
        return self.inspected(row)[0]

    def inspected(self, row: Row) -> tuple[Trace, dict[int, ModelCall], list[str]]:
        """A trace as it can be read, its model calls by number, and what cannot be read of it."""
        run, status, head = row
        calls, problems = self._calls(run)
        try:
            trace = Trace.model_validate({**json.loads(zlib.decompress(head)), "status": status})
        except (ValueError, zlib.error) as error:
            problems.insert(0, f"cannot be read: {error}")
            trace = Trace(id=str(run), status=status)
        tools = []
        for number, body in self._tables.read(
            "SELECT number, body FROM tools WHERE run = ? ORDER BY number", run
        ):
            try:
                tools.append(ToolCall.model_validate(json.loads(zlib.decompress(body))))
            except (ValueError, zlib.error) as error:
                problems.append(f"tool call {number} cannot be read: {error}")
        said = [
            Feedback(key=about, value=value, comment=comment, at=at)
            for about, value, comment, at in self._tables.read(
                "SELECT about, value, comment, at FROM feedback WHERE run = ? ORDER BY at, id", run
            )
        ]
        update = {
            "model_calls": tuple(calls.values()),
            "tool_calls": (*trace.tool_calls, *tools),
            "feedback": tuple(said),
            "lost": trace.lost + len(problems),
            "error": problems[0] if problems else trace.error,
        }
        return trace.model_copy(update=update), calls, problems

    def _calls(self, run: str) -> tuple[dict[int, ModelCall], list[str]]:
        """The model calls of a run by number, and what is wrong with each that cannot be read."""
        coder = Coder()
        calls: dict[int, ModelCall] = {}
        problems = []
        for number, discarded, *columns in self._tables.read(
            "SELECT number, discarded, base, shared, prompt, sampled, logprobs, about, digest FROM calls WHERE run = ? "
            "ORDER BY number",
            run,
        ):
            try:
                call = coder.decode(Coded(**dict(zip(_CODED, columns, strict=True))), number)
            except (ValueError, KeyError, zlib.error) as error:
                problems.append(f"call {number} cannot be read: {error}")
                continue
            calls[number] = call.model_copy(update={"discarded": True}) if discarded else call
        return calls, problems

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

    def _delete(self, where: str, *values: Sequence[object]) -> int:
        found: list[int] = []

        def erase() -> None:
            with self._tables.transaction():
                found.append(self._tables.write(f"DELETE FROM runs WHERE {where}", values))

        self._writer.alone(erase)
        return found[0]

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
                for number, call in enumerate(trace.model_calls):
                    sql, row = _call(trace.id, number, coder, call)
                    self._tables.write(sql, [row])
            self._tables.write("DROP TABLE traces_1", [()])


_CODED = ("base", "shared", "prompt", "sampled", "logprobs", "about", "digest")
SIZES = (
    "SELECT runs.id, LENGTH(head) + COALESCE((SELECT SUM(LENGTH(prompt) + LENGTH(sampled) + LENGTH(logprobs) + "
    "LENGTH(about)) FROM calls WHERE calls.run = runs.id), 0) + COALESCE((SELECT SUM(LENGTH(body)) FROM tools "
    "WHERE tools.run = runs.id), 0) FROM runs ORDER BY started DESC, runs.id"
)


_stores: "weakref.WeakSet[TraceStore]" = weakref.WeakSet()
_parents: list[object] = []


def _after_fork() -> None:
    for store in list(_stores):
        if store._closing.alive:
            store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _not_stored(runs: dict[str, _Open], run: str) -> None:
    """What comes next of the run may not go on from what is not there."""
    if run in runs:
        runs[run].coder.restart()


def _hashed(customer: str) -> str:
    return hashlib.sha256(customer.encode(errors="surrogatepass")).hexdigest()


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
        zlib.compress(model_json(trace, exclude={"model_calls", "feedback"}, exclude_defaults=True), 1),
        None if score is None else json.dumps(score.model_dump(mode="json")),
    )  # fmt: skip


def _said(run: str, feedback: Feedback) -> Statement:
    return _FEEDBACK, (
        uuid.uuid4().hex, run, feedback.key, feedback.value, feedback.comment, feedback.at,
    )  # fmt: skip


def _call(run: str, number: int, coder: Coder, call: ModelCall) -> Statement:
    coded = coder.encode(call, number)
    return _CALL, (
        run, number, call.response_id, call.version, coded.digest, int(call.discarded), coded.base,
        coded.shared, coded.prompt, coded.sampled, coded.logprobs, coded.about,
    )  # fmt: skip
