"""Reads a trace store: whole traces one by one, or columns of many."""

import json
import zlib
from collections.abc import Iterator, Sequence

from stateset_agents.errors import BadInput
from stateset_agents.trace import Feedback, ModelCall, ToolCall, Trace
from stateset_agents.traces.codec import Coded, Coder
from stateset_agents.traces.conversion import merged
from stateset_agents.traces.records import CODED
from stateset_agents.traces.tables import Row, Tables


class TraceReader:
    """The reading half of a trace store."""

    _tables: Tables
    place: str

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
        return next(self.traces(where="id = ?", values=[self.run_id(trace_id)]))

    def thread(self, thread: str) -> Trace:
        """All runs of a thread as one trace: the calls of all, the conversation and the end of the last."""
        runs = list(self.traces(thread=thread))
        if not runs:
            raise BadInput(f"Expected runs of thread {thread!r}, found none in {self.place}.")
        return runs[-1].model_copy(
            update={
                "model_calls": tuple(call for run in runs for call in run.model_calls),
                "feedback": tuple(feedback for run in runs for feedback in run.feedback),
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

    def phases(self) -> list[str]:
        """The phases of the traces; '' is that of recorded runs."""
        return [
            str(row[0])
            for row in self._tables.read("SELECT DISTINCT phase FROM runs ORDER BY phase")
        ]

    def certified(self) -> int:
        """Rows that an adapter learned from."""
        ((count,),) = self._tables.read("SELECT COUNT(*) FROM trained")
        return int(count)

    def rows(self) -> Iterator[Row]:
        """Id, status and head of each run, oldest first; `trace_of` reads them."""
        return self._tables.read("SELECT id, status, head FROM runs ORDER BY started, id")

    def read(self, sql: str, *values: object) -> Iterator[Row]:
        """Rows of your own query on the tables (`traces/tables.py`)."""
        return self._tables.read(sql, *values)

    def trace_of(self, row: Row) -> Trace:
        """The trace of a row of id, status and head. Parts that cannot be read are counted in `lost`; its error names the first."""
        return self.inspected(row)[0]

    def inspected(self, row: Row) -> tuple[Trace, dict[int, ModelCall], list[str]]:
        """The readable part of a trace, its model calls by number, and the problems."""
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
        feedback = [
            Feedback(key=about, value=value, comment=comment, at=at)
            for about, value, comment, at in self._tables.read(
                "SELECT about, value, comment, at FROM feedback WHERE run = ? ORDER BY at, id", run
            )
        ]
        update = {
            "model_calls": tuple(calls.values()),
            "tool_calls": merged(trace.tool_calls, tools),
            "feedback": tuple(feedback),
            "lost": trace.lost + len(problems),
            "error": problems[0] if problems else trace.error,
        }
        return trace.model_copy(update=update), calls, problems

    def _calls(self, run: str) -> tuple[dict[int, ModelCall], list[str]]:
        """The model calls of a run by number, and the problems of unreadable ones."""
        coder = Coder()
        calls: dict[int, ModelCall] = {}
        problems = []
        for number, discarded, *columns in self._tables.read(
            "SELECT number, discarded, base, shared, prompt, sampled, logprobs, about, digest FROM calls WHERE run = ? "
            "ORDER BY number",
            run,
        ):
            try:
                call = coder.decode(Coded(**dict(zip(CODED, columns, strict=True))), number)
            except (ValueError, KeyError, zlib.error) as error:
                problems.append(f"call {number} cannot be read: {error}")
                continue
            calls[number] = call.model_copy(update={"discarded": True}) if discarded else call
        return calls, problems

    def run_id(self, beginning: str) -> str:
        """The id of the one trace that begins with `beginning`. Raises BadInput for none and for several."""
        rows = list(
            self._tables.read(
                "SELECT id FROM runs WHERE substr(id, 1, ?) = ? LIMIT 2", len(beginning), beginning
            )
        )
        if len(rows) != 1:
            count = "none" if not rows else "several"
            raise BadInput(f"Expected one trace whose id starts with {beginning!r}, found {count}.")
        return str(rows[0][0])
