"""The tables of a store: one schema in SQLite (write-ahead log) or PostgreSQL, with migrations."""

import abc
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput, RunBroken

SCHEMA_VERSION = 3
SCHEMA = """
CREATE TABLE runs(
  id TEXT PRIMARY KEY, thread TEXT NOT NULL, graph TEXT NOT NULL, phase TEXT NOT NULL, step INTEGER NOT NULL,
  scenario TEXT, intent TEXT, customer TEXT NOT NULL, status TEXT NOT NULL, exactness TEXT NOT NULL,
  version TEXT NOT NULL, success INTEGER, reward REAL, started REAL NOT NULL, head BLOB NOT NULL, score TEXT);
CREATE INDEX runs_by_phase ON runs(phase, step);
CREATE INDEX runs_by_start ON runs(started);
CREATE INDEX runs_by_thread ON runs(thread);
CREATE INDEX runs_by_customer ON runs(customer);
CREATE TABLE calls(
  run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, number INTEGER NOT NULL, response_id TEXT NOT NULL,
  version TEXT NOT NULL, digest TEXT NOT NULL, discarded INTEGER NOT NULL, base INTEGER NOT NULL,
  shared INTEGER NOT NULL, prompt BLOB NOT NULL, sampled BLOB NOT NULL, logprobs BLOB NOT NULL, about BLOB NOT NULL,
  PRIMARY KEY(run, number));
CREATE INDEX calls_by_response ON calls(response_id);
CREATE TABLE tools(
  run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, number INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY(run, number));
CREATE TABLE feedback(
  id TEXT PRIMARY KEY, run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, about TEXT NOT NULL,
  value REAL NOT NULL, comment TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX feedback_by_run ON feedback(run);
CREATE TABLE trained(
  run TEXT NOT NULL, number INTEGER NOT NULL, adapter TEXT NOT NULL, response_id TEXT NOT NULL,
  digest TEXT NOT NULL, version TEXT NOT NULL, customer TEXT NOT NULL DEFAULT '', PRIMARY KEY(adapter, run, number));
CREATE INDEX trained_by_customer ON trained(customer);
CREATE TABLE adapters(name TEXT PRIMARY KEY, parent TEXT NOT NULL);
CREATE TABLE forgotten(customer TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE about(version INTEGER NOT NULL);
"""
"""`trained` is the certificate: the rows that each adapter learned from; it stays when a run is erased. `adapters` has the
adapter that training started from. `forgotten` has hashes of erased customers' ids, so that an old export does not bring them
back."""
MIGRATIONS = {
    2: (
        "ALTER TABLE trained ADD COLUMN customer TEXT NOT NULL DEFAULT ''",
        "UPDATE trained SET customer = COALESCE((SELECT customer FROM runs WHERE runs.id = trained.run), '')",
        "CREATE INDEX trained_by_customer ON trained(customer)",
        "CREATE TABLE adapters(name TEXT PRIMARY KEY, parent TEXT NOT NULL)",
        "CREATE TABLE forgotten(customer TEXT PRIMARY KEY, at REAL NOT NULL)",
        "UPDATE about SET version = 3",
    )
}
"""Migrations from each version to the next."""

Row = tuple[Any, ...]


class Tables(abc.ABC):
    """A writing connection, and separate ones for reading."""

    place: str
    """Its place for error messages, without a password."""

    @abc.abstractmethod
    def read(self, sql: str, *values: object) -> Iterator[Row]:
        """Rows one by one, on a separate connection: readers never block the writer."""

    @abc.abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """A transaction: everything written inside is on disk afterwards, or nothing."""

    @abc.abstractmethod
    def write(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """Execute a statement for each row. Returns the number of changed rows."""

    @abc.abstractmethod
    def close(self) -> None: ...

    @abc.abstractmethod
    def shrink(self) -> None:
        """Overwrite and free the space of deleted rows. Raises RunBroken if a reader blocks it for too long."""

    @abc.abstractmethod
    def passes(self, error: Exception) -> bool:
        """Whether a retry can help: the database is locked, or the connection broke."""

    @abc.abstractmethod
    def explained(self, error: Exception) -> Exception:
        """The error for those who wait."""


class SqliteTables(Tables):
    def __init__(self, path: Path, *, create: bool) -> None:
        if not create and not path.is_file():
            raise BadInput(f"Expected a trace store at {str(path)!r}, found none.")
        self.path, self.place = path, str(path)
        try:
            self._db = sqlite3.connect(
                path, check_same_thread=False, timeout=30, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
            self._open()
        except sqlite3.DatabaseError as error:
            raise BadInput(f"Expected a trace store at {str(path)!r}, found: {error}.") from None

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        check_version(version, self.place)
        if version == SCHEMA_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        version = self._db.execute("PRAGMA user_version").fetchone()[
            0
        ]  # another may have been quicker
        if version in MIGRATIONS:
            for number in range(version, SCHEMA_VERSION):
                for statement in MIGRATIONS[number]:
                    self._db.execute(statement)
        elif version < SCHEMA_VERSION:
            if version == 1:
                self._db.execute("ALTER TABLE traces RENAME TO traces_1")
                self._db.execute("DROP INDEX traces_by_phase")
            for statement in filter(str.strip, SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute("INSERT INTO about VALUES(?)", (SCHEMA_VERSION,))
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def read(self, sql: str, *values: object) -> Iterator[Row]:
        reader = sqlite3.connect(self.path, timeout=30)
        try:
            yield from reader.execute(sql, values)
        finally:
            reader.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def write(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        return self._db.executemany(sql, rows).rowcount

    def close(self) -> None:
        self._db.close()

    def shrink(self) -> None:
        self._db.execute("VACUUM")
        deadline = time.monotonic() + 30
        while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > deadline:
                raise RunBroken(
                    f"What was deleted is out of {self.place!r}, but still in its log: expected no reader of older rows for "
                    "30 seconds, found one. Run it again when it has ended."
                )
            time.sleep(0.1)

    def passes(self, error: Exception) -> bool:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def explained(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.OperationalError):
            return RunBroken(f"Expected to write to {self.place!r}, found: {error}. Make room.")
        return error


class PostgresTables(Tables):
    """The same in PostgreSQL. Extra: `postgres`."""

    def __init__(self, url: str, *, create: bool) -> None:
        try:
            import psycopg
        except ImportError:
            raise BadInput("Expected psycopg, found none: install the extra 'postgres'.") from None
        self._url = url
        self.place = "postgresql://" + url.rsplit("@", 1)[-1].split("?")[0].removeprefix(
            "postgresql://"
        )
        self._lost = (psycopg.OperationalError, psycopg.InterfaceError)
        try:
            self._db = psycopg.connect(url, autocommit=True)
            self._open(create)
        except psycopg.Error as error:
            raise BadInput(f"Expected a trace store at {self.place}, found: {error}") from None

    def _open(self, create: bool) -> None:
        with self._db.transaction():
            self._db.execute(
                "SELECT pg_advisory_xact_lock(727274)"
            )  # two may open a new store at once
            there = self._db.execute("SELECT to_regclass('about'), to_regclass('runs')").fetchone()
            if there is not None and there[0] is not None and there[1] is not None:
                row = self._db.execute("SELECT version FROM about").fetchone()
                version = int(row[0]) if row else 0
                check_version(version, self.place)
                for number in range(version, SCHEMA_VERSION):
                    for statement in MIGRATIONS[number]:
                        self._db.execute(_placed(_typed(statement)))
                return
            if not create:
                raise BadInput(f"Expected a trace store at {self.place}, found none.")
            self._db.execute(_placed(_typed(SCHEMA)))
            self._db.execute("INSERT INTO about VALUES(%s)", (SCHEMA_VERSION,))

    def read(self, sql: str, *values: object) -> Iterator[Row]:
        import psycopg

        with (
            psycopg.connect(self._url) as reader,
            reader.cursor(name="traces") as cursor,
        ):
            cursor.execute(_placed(sql), values)
            yield from cursor

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._db.closed:
            import psycopg

            self._db = psycopg.connect(self._url, autocommit=True)
        with self._db.transaction():
            yield

    def write(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        with self._db.cursor() as cursor:
            cursor.executemany(_placed(sql), rows)
            return cursor.rowcount

    def close(self) -> None:
        self._db.close()

    def shrink(self) -> None:
        self._db.execute("VACUUM runs, calls, tools, feedback")

    def passes(self, error: Exception) -> bool:
        state = str(getattr(error, "sqlstate", None) or "08")
        return isinstance(error, self._lost) and state[:2] in _PASSES

    def explained(self, error: Exception) -> Exception:
        if isinstance(error, self._lost):
            return RunBroken(f"Expected to write to {self.place}, found: {error}")
        return error


_PASSES = ("08", "40", "55", "57")
"""Classes of SQLSTATE: connection lost, deadlock, lock not to be had, server going down."""


def _typed(sql: str) -> str:
    return sql.replace("BLOB", "BYTEA").replace("REAL", "DOUBLE PRECISION")


def _placed(sql: str) -> Any:
    """Replace question marks by psycopg's placeholders."""
    return sql.replace("%", "%%").replace("?", "%s")


def check_version(version: int, place: str) -> None:
    """Raises BadInput for a store that a newer version wrote."""
    if version > SCHEMA_VERSION:
        raise BadInput(
            f"Expected a store of version {SCHEMA_VERSION} or older at {place!r}, found version {version}. "
            "Update stateset-agents."
        )


def opened(place: Path | str, *, create: bool = True) -> Tables:
    """The tables at a path, or at a `postgresql://` URL."""
    if str(place).startswith(("postgresql://", "postgres://")):
        return PostgresTables(str(place), create=create)
    return SqliteTables(Path(place), create=create)
