"""The trace store: append-only SQLite. An append is acknowledged once it is durable; nobody waits for it."""

import json
import queue
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from stateset_agents.errors import BadInput, RunBroken
from stateset_agents.reward import Score
from stateset_agents.trace import Trace

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS traces(
  id TEXT PRIMARY KEY, phase TEXT NOT NULL, step INTEGER NOT NULL, scenario TEXT, intent TEXT,
  status TEXT NOT NULL, exactness TEXT NOT NULL, version TEXT NOT NULL, success INTEGER, reward REAL,
  started REAL NOT NULL, body BLOB NOT NULL, score TEXT);
CREATE INDEX IF NOT EXISTS traces_by_phase ON traces(phase, step);
"""

Entry = tuple[Trace, str, int, Score | None]


class TraceStore:
    """Open with `TraceStore(path)`; a store that a newer version wrote is refused."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not path.is_file():
            raise BadInput(f"Expected a trace store at {str(path)!r}, found none.")
        self.path = path
        try:
            self._db = sqlite3.connect(path, check_same_thread=False)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA_VERSION:
                raise BadInput(
                    f"Expected a store of version {SCHEMA_VERSION} or older at {str(path)!r}, found "
                    f"version {found}. Update stateset-agents."
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise BadInput(f"Expected a trace store at {str(path)!r}, found: {error}.") from None
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[tuple[Entry, Future[None]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="trace-writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def append(
        self, trace: Trace, *, phase: str = "", step: int = 0, score: Score | None = None
    ) -> Future[None]:
        """Queue a trace; the future resolves when it is on disk, or carries the error."""
        done: Future[None] = Future()
        self._waiting.put(((trace, phase, step, score), done))
        return done

    def discard_from(self, phase: str, step: int) -> None:
        """Remove traces of steps that were never committed."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM traces WHERE phase = ? AND step >= ?", (phase, step))

    def traces(self, *, phase: str | None = None, limit: int = -1) -> Iterator[Trace]:
        """Stored traces, oldest first, read one by one."""
        reader = sqlite3.connect(self.path)
        try:
            for (body,) in reader.execute(
                "SELECT body FROM traces WHERE ? IS NULL OR phase = ? ORDER BY step, started LIMIT ?",
                (phase, phase, limit),
            ):
                yield Trace.model_validate_json(zlib.decompress(body))
        finally:
            reader.close()

    def get(self, trace_id: str) -> Trace:
        """A trace by its id or an unambiguous beginning of it."""
        with self._lock:
            rows = self._db.execute(
                "SELECT body FROM traces WHERE substr(id, 1, ?) = ? LIMIT 2",
                (len(trace_id), trace_id),
            ).fetchall()
        if len(rows) != 1:
            found = "none" if not rows else "several"
            raise BadInput(f"Expected one trace whose id starts with {trace_id!r}, found {found}.")
        return Trace.model_validate_json(zlib.decompress(rows[0][0]))

    def list(self, *, phase: str | None = None, limit: int = 20) -> list[dict[str, object]]:
        """The newest traces as plain columns, without their bodies."""
        with self._lock:
            cursor = self._db.execute(
                "SELECT id, phase, step, intent, status, exactness, version, success, reward FROM traces "
                "WHERE ? IS NULL OR phase = ? ORDER BY started DESC LIMIT ?",
                (phase, phase, limit),
            )
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def count(self, phase: str | None = None) -> int:
        with self._lock:
            row = self._db.execute(
                "SELECT COUNT(*) FROM traces WHERE ? IS NULL OR phase = ?", (phase, phase)
            ).fetchone()
        return int(row[0])

    def close(self) -> None:
        """Write what waits, then close."""
        self._waiting.put(None)
        self._writer.join()
        self._db.close()

    def _write(self) -> None:
        while True:
            batch = [self._waiting.get()]
            try:
                while len(batch) < 256:
                    batch.append(self._waiting.get_nowait())
            except queue.Empty:
                pass
            entries = [item for item in batch if item is not None]
            try:
                rows = [_row(entry) for entry, _ in entries]
                with self._lock, self._db:
                    self._db.executemany(f"INSERT INTO traces VALUES({', '.join('?' * 13)})", rows)
            except Exception as error:  # noqa: BLE001 (the waiting caller gets it)
                problem: Exception = error
                if isinstance(error, sqlite3.OperationalError):
                    problem = RunBroken(
                        f"Expected to write to {str(self.path)!r}, found: {error}. Make room."
                    )
                for _, done in entries:
                    done.set_exception(problem)
            else:
                for _, done in entries:
                    done.set_result(None)
            if None in batch:
                return


def _row(entry: Entry) -> tuple[object, ...]:
    trace, phase, step, score = entry
    goal = trace.goal_score
    return (
        trace.id,
        phase,
        step,
        trace.scenario.id if trace.scenario else None,
        trace.scenario.intent if trace.scenario else None,
        trace.status,
        trace.exactness,
        trace.model_calls[-1].version if trace.model_calls else "",
        None if goal is None else int(goal.success),
        None if score is None else score.value,
        trace.started,
        zlib.compress(trace.model_dump_json().encode(), 1),
        None if score is None else json.dumps(score.model_dump(mode="json")),
    )
