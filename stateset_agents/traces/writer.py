"""One thread writes: what waits is written in one transaction, and acknowledged when it is on disk."""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import groupby

from stateset_agents.errors import RunBroken
from stateset_agents.traces.tables import Tables

Statement = tuple[str, Sequence[object]]
Make = Callable[[], list[Statement]]
BATCH = 512
GATHERS = 0.01
"""Seconds in which more may come before a batch is written. A writer that woke for every call would take the
interpreter from whoever records, each time."""


class Writer:
    """Takes work from any thread, in order."""

    def __init__(self, tables: Tables, *, lost: Callable[[object], None]) -> None:
        """`lost` is told the run of every record that could not be written."""
        self._tables, self._lost = tables, lost
        self._waiting: queue.SimpleQueue[tuple[Make, Future[None], bool] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def put(self, make: Make) -> Future[None]:
        """Queue the statements that `make` returns; it is called by the writer's thread. The future resolves when they
        are on disk, or carries the error."""
        done: Future[None] = Future()
        self._waiting.put((make, done, False))
        return done

    def alone(self, work: Callable[[], None]) -> None:
        """Do something on the writer's connection outside a batch, and wait for it."""
        done: Future[None] = Future()

        def make() -> list[Statement]:
            work()
            return []

        self._waiting.put((make, done, True))
        done.result()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            if batch[0] is not None and not batch[0][2]:
                time.sleep(GATHERS)
            try:
                while len(batch) < BATCH and batch[-1] is not None and not batch[-1][2]:
                    batch.append(self._waiting.get_nowait())
            except queue.Empty:
                pass
            work = [item for item in batch if item is not None]
            for alone, items in groupby(work, key=lambda item: item[2]):
                for one in [[item] for item in items] if alone else [list(items)]:
                    self._do([(make, done) for make, done, _ in one])
            if batch[-1] is None:
                return

    def _do(self, work: list[tuple[Make, Future[None]]]) -> None:
        """Write together; where that fails, one by one, so that what is wrong with one is not the others' loss."""
        made: list[tuple[list[Statement], Future[None]]] = []
        for make, done in work:
            try:
                made.append((make(), done))
            except Exception as error:  # noqa: BLE001 (who waits gets it)
                _fail(done, error)
        try:
            self._write([statement for statements, _ in made for statement in statements])
        except Exception:  # noqa: BLE001 (each is tried alone)
            self._one_by_one(made)
        else:
            for _, done in made:
                done.set_result(None)

    def _one_by_one(self, made: list[tuple[list[Statement], Future[None]]]) -> None:
        broken: set[object] = set()
        for statements, done in made:
            runs = {row[0] for _, row in statements}
            try:
                if runs & broken:  # it may go on from what was not stored
                    raise RunBroken(
                        "Expected the records before it to be stored, found that one was not."
                    )
                self._write(statements)
            except Exception as error:  # noqa: BLE001 (who waits gets it)
                broken |= runs
                _fail(done, self._explained(error))
            else:
                done.set_result(None)
        for run in broken:
            self._lost(run)

    def _write(self, statements: list[Statement]) -> None:
        if not statements:
            return
        with self._tables.transaction():
            for sql, rows in groupby(statements, key=lambda statement: statement[0]):
                self._tables.write(sql, [row for _, row in rows])

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.OperationalError):
            return RunBroken(
                f"Expected to write to {self._tables.place!r}, found: {error}. Make room."
            )
        return error


def _fail(done: Future[None], error: Exception) -> None:
    """Who does not wait for it still finds it in the log."""
    logging.getLogger(__name__).error(
        "a record was not stored: %s: %s", type(error).__name__, error
    )
    done.set_exception(error)
