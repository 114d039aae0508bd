"""The writer thread: it writes queued records in one transaction and acknowledges them when they are on disk."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from typing import Any

from stateset_agents.errors import RunBroken
from stateset_agents.traces.tables import Tables

Statement = tuple[str, Sequence[object]]
Make = Callable[[], list[Statement]]
BATCH = 512
GATHERS = 0.01
"""Seconds to wait for more records before a batch is written. Waking up for every call would take the interpreter lock from the
recording threads."""
PATIENCE = 60.0
"""Seconds of retries while a database is locked or unreachable."""


class Written:
    """A queued record. Wait for it with `result`, or `await` it: then it is on disk, or the error is raised. All of them share
    the writer's one condition, because there is one for every recorded call."""

    __slots__ = ("_done", "_error", "_news", "alone", "make", "run", "statements")

    def __init__(self, news: threading.Condition, make: Make, run: str, alone: bool) -> None:
        self._news, self._done = news, False
        self._error: BaseException | None = None
        self.make, self.alone = make, alone
        self.run = run
        """The run that it belongs to."""
        self.statements: Sequence[Statement] = ()

    def done(self) -> bool:
        return self._done

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Its error, or None if it is on disk. Raises TimeoutError while it is queued."""
        with self._news:
            if not self._news.wait_for(self.done, timeout):
                raise TimeoutError(f"Expected it to be written within {timeout} seconds.")
        return self._error

    def result(self, timeout: float | None = None) -> None:
        error = self.exception(timeout)
        if error is not None:
            raise error

    def __await__(self) -> Generator[Any, None, None]:
        if not self._done:
            yield from asyncio.to_thread(self.exception).__await__()
        self.result()

    def end(self, error: BaseException | None = None) -> None:
        """Set by the writer, which then wakes all waiters."""
        self._error, self._done = error, True
        self.make, self.statements = _made, ()


def _made() -> list[Statement]:
    return []


class Writer:
    """Takes work from any thread, in order. It owns the tables, and closes them when it ends."""

    def __init__(self, tables: Tables, *, lost: Callable[[str], None]) -> None:
        """`lost` is called with the run of every record that could not be written."""
        self._tables, self._lost = tables, lost
        self._waiting: queue.SimpleQueue[Written | None] = queue.SimpleQueue()
        self._open = True
        self._entering = threading.Lock()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def put(self, make: Make, *, run: str = "", alone: bool = False) -> Written:
        """Queue the statements that `make` returns; it is called by the writer's thread. Raises RunBroken once it is
        closed."""
        work = Written(self._news, make, run, alone)
        with self._entering:
            if not self._open:
                raise RunBroken(
                    f"Expected an open store at {self._tables.place!r}, found that it was closed."
                )
            self._waiting.put(work)
        return work

    def alone(self, work: Callable[[], None]) -> None:
        """Run `work` on the writer's connection outside a batch, after everything queued, and wait for it."""

        def make() -> list[Statement]:
            work()
            return []

        self.put(make, alone=True).result()

    def close(self) -> None:
        """Write everything queued, and end. Can be called again."""
        with self._entering:
            if self._open:
                self._open = False
                self._waiting.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        ends = False
        while not ends:
            batch = [self._waiting.get()]
            if batch[0] is not None and not batch[0].alone:
                time.sleep(GATHERS)
            try:
                while len(batch) < BATCH and batch[-1] is not None and not batch[-1].alone:
                    batch.append(self._waiting.get_nowait())
            except queue.Empty:
                pass
            ends = batch[-1] is None
            work = [item for item in batch if item is not None]
            try:
                if work and work[-1].alone:
                    self._do(work[:-1])
                    self._do(work[-1:])
                else:
                    self._do(work)
            except BaseException as error:  # noqa: BLE001 (a writer that died would take all that comes with it)
                for item in work:
                    if not item.done():
                        self._fail(item, error)
            with self._news:
                self._news.notify_all()
            del batch, work
        self._tables.close()

    def _do(self, work: list[Written]) -> None:
        """Write together; if that fails, one by one, so that one bad record does not affect the others."""
        made: list[Written] = []
        for item in work:
            try:
                item.statements = item.make()
                made.append(item)
            except BaseException as error:  # noqa: BLE001 (who waits gets it)
                self._fail(item, error)
        try:
            self._write([statement for item in made for statement in item.statements])
        except Exception:  # noqa: BLE001 (each is tried alone)
            self._one_by_one(made)
        else:
            for item in made:
                item.end()

    def _one_by_one(self, made: list[Written]) -> None:
        broken: set[str] = set()
        for item in made:
            try:
                if item.run in broken:  # it may go on from what was not stored
                    raise RunBroken(
                        "Expected the records before it to be stored, found that one was not."
                    )
                self._write(item.statements)
            except Exception as error:  # noqa: BLE001 (who waits gets it)
                if item.run:
                    broken.add(item.run)
                    self._lost(item.run)
                self._fail(item, self._tables.explained(error))
            else:
                item.end()

    def _write(self, statements: Sequence[Statement]) -> None:
        """Write in one transaction. A locked or unreachable database is waited for."""
        if not statements:
            return
        began, wait, again = time.monotonic(), 0.05, False
        while True:
            try:
                with self._tables.transaction():
                    for sql, rows in groupby(statements, key=lambda statement: statement[0]):
                        # A connection that broke may have broken after the commit.
                        once = again and sql.startswith("INSERT") and "ON CONFLICT" not in sql
                        self._tables.write(
                            f"{sql} ON CONFLICT DO NOTHING" if once else sql,
                            [row for _, row in rows],
                        )
                return
            except Exception as error:
                if time.monotonic() - began > PATIENCE or not self._tables.passes(error):
                    raise
            again = True
            time.sleep(wait)
            wait = min(2 * wait, 2.0)

    def _fail(self, item: Written, error: BaseException) -> None:
        """Log the error for callers that do not wait."""
        logging.getLogger(__name__).error(
            "a record was not stored: %s: %s", type(error).__name__, error
        )
        item.end(error)
