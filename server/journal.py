"""What a server remembers of conversations and of their turns: a small table in memory, SQLite or PostgreSQL.

conversation   by the client's own id, or by a hash of its words  ->  thread, checkpoint, pending confirmation
turn           thread and request  ->  the outcome; while it is answered, a lease, so that no other process answers it too
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LEASE = 60.0
"""How long a turn is this process's own without a sign of life, in seconds."""
KEPT = 24 * 60 * 60.0
"""How long outcomes of turns are kept, in seconds."""
TABLES = (
    """
CREATE TABLE IF NOT EXISTS stateset_conversation(
    key TEXT PRIMARY KEY, thread TEXT NOT NULL, checkpoint TEXT, pending TEXT, size INTEGER NOT NULL,
    at DOUBLE PRECISION NOT NULL
);
CREATE INDEX IF NOT EXISTS stateset_conversation_thread ON stateset_conversation(thread);
CREATE TABLE IF NOT EXISTS stateset_turn(
    thread TEXT NOT NULL, request TEXT NOT NULL, outcome TEXT, lease DOUBLE PRECISION NOT NULL,
    at DOUBLE PRECISION NOT NULL, PRIMARY KEY(thread, request)
);
""".strip()
    .rstrip(";")
    .split(";")
)
BUSY = "*"
"""The request under which the lease of a thread is kept."""


Statement = tuple[str, tuple[Any, ...]]
"""SQL with `?` for values, and the values."""


class Database(Protocol):
    """Where the tables are: each call is a transaction of its own."""

    async def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement, with `?` for values."""

    async def together(self, statements: Sequence[Statement]) -> None:
        """Several statements, of which all count or none."""


class SqliteTables:
    """One connection for the whole process, so that nobody waits for a lock of ours; `BEGIN IMMEDIATE` for other processes."""

    def __init__(self, file: str = ":memory:") -> None:
        self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=30)
        self._alone = threading.Lock()
        if file != ":memory:":
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
        self._in_memory = file == ":memory:"
        for table in TABLES:
            self._db.execute(table)

    async def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        if self._in_memory:
            return self._run([(sql, values)])
        return await asyncio.to_thread(self._run, [(sql, values)])

    async def together(self, statements: Sequence[Statement]) -> None:
        if self._in_memory:
            self._run(statements)
        else:
            await asyncio.to_thread(self._run, statements)

    def _run(self, statements: Sequence[Statement]) -> list[tuple[Any, ...]]:
        """The rows of the last one."""
        rows: list[tuple[Any, ...]] = []
        reads = all(sql.startswith("SELECT") for sql, _ in statements)
        with self._alone:
            self._db.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    rows = self._db.execute(sql, values).fetchall()
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            return rows

    def close(self) -> None:
        self._db.close()


class PostgresTables:
    """Connections of a pool, which looks at each before it lends it."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def create(self) -> None:
        async with self._pool.connection() as db:
            # Two processes that start at once would create the same table.
            await db.execute("SELECT pg_advisory_lock(871402)")
            try:
                for table in TABLES:
                    await db.execute(table)
            finally:
                await db.execute("SELECT pg_advisory_unlock(871402)")

    async def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        async with self._pool.connection() as db:
            cursor = await db.execute(sql.replace("?", "%s"), values)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [tuple(row[name] for name in names) for row in await cursor.fetchall()]

    async def together(self, statements: Sequence[Statement]) -> None:
        async with self._pool.connection() as db, db.transaction():
            for sql, values in statements:
                await db.execute(sql.replace("?", "%s"), values)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to answer a request: of this process (`mine`), or there is an outcome already, or another one answers it."""

    mine: bool
    outcome: dict[str, Any] | None = None
    owner: str = ""
    """The token with which the lease is renewed and released."""


@dataclass(slots=True)
class Lease:
    """The right to a thread while a turn lasts."""

    lost: bool = False
    """Another process has it."""


class Journal:
    """Turns by thread and request."""

    def __init__(self, tables: Database) -> None:
        self.tables = tables

    async def claim(self, thread: str, request: str) -> Claim:
        """Begin to answer a request of a thread. One turn of a thread at a time, over all processes."""
        outcome = await self.outcome(thread, request)
        if outcome is not None:
            return Claim(False, outcome)
        owner = uuid.uuid4().hex
        if not await self._lease(thread, owner):
            return Claim(False)
        try:
            outcome = await self.outcome(thread, request)  # it ended in between
        except BaseException:
            await self.release(thread, owner)
            raise
        if outcome is not None:
            await self.release(thread, owner)
            return Claim(False, outcome)
        return Claim(True, owner=owner)

    async def _lease(self, thread: str, owner: str) -> bool:
        now = time.time()
        rows = await self.tables.run(
            "INSERT INTO stateset_turn(thread, request, outcome, lease, at) VALUES(?, ?, ?, ?, ?) "
            "ON CONFLICT(thread, request) DO UPDATE SET outcome = excluded.outcome, lease = excluded.lease, "
            "at = excluded.at WHERE stateset_turn.lease < ? RETURNING thread",
            thread, BUSY, owner, now + LEASE, now, now,
        )  # fmt: skip
        return bool(rows)

    async def outcome(self, thread: str, request: str) -> dict[str, Any] | None:
        """The outcome of a request that was answered."""
        rows = await self.tables.run(
            "SELECT outcome FROM stateset_turn WHERE thread = ? AND request = ? AND outcome IS NOT NULL",
            thread, request,
        )  # fmt: skip
        return json.loads(rows[0][0]) if rows else None

    def ending(self, thread: str, request: str, outcome: dict[str, Any]) -> list[Statement]:
        """What stores the outcome of a request, for whoever asks again, and forgets what is old."""
        now = time.time()
        return [
            (
                (
                    "INSERT INTO stateset_turn(thread, request, outcome, lease, at) VALUES(?, ?, ?, 0, ?) "
                    "ON CONFLICT(thread, request) DO UPDATE SET outcome = excluded.outcome, at = excluded.at"
                ),
                (thread, request, json.dumps(outcome), now),
            ),
            ("DELETE FROM stateset_turn WHERE at < ? AND lease < ?", (now - KEPT, now)),
        ]

    async def release(self, thread: str, owner: str) -> None:
        """The thread may be answered by anybody again."""
        await self.tables.run(
            "UPDATE stateset_turn SET lease = 0 WHERE thread = ? AND request = ? AND outcome = ?",
            thread, BUSY, owner,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def held_alive(self, thread: str, owner: str) -> AsyncIterator["Lease"]:
        """Keep the lease of a thread while its turn lasts, and release it at the end. The turn is cancelled if the lease is lost:
        another process answers by then."""
        turn, renewed, lease = asyncio.current_task(), time.monotonic(), Lease()

        async def renew() -> None:
            nonlocal renewed
            while True:
                await asyncio.sleep(LEASE / 4)
                try:
                    rows = await self.tables.run(
                        "UPDATE stateset_turn SET lease = ? WHERE thread = ? AND request = ? AND outcome = ? "
                        "RETURNING thread",
                        time.time() + LEASE, thread, BUSY, owner,
                    )  # fmt: skip
                except Exception as error:  # noqa: BLE001 (a database that blinks: there is time for another try)
                    logging.getLogger(__name__).warning("a lease was not renewed: %s", error)
                    rows = [("",)] if time.monotonic() - renewed < LEASE * 0.9 else []
                else:
                    renewed = time.monotonic()
                if not rows and turn is not None:
                    logging.getLogger(__name__).error("the lease of thread %s is lost", thread)
                    lease.lost = True
                    turn.cancel()
                    return

        renewing = asyncio.ensure_future(renew())
        try:
            yield lease
        finally:
            renewing.cancel()
            await asyncio.shield(self.release(thread, owner))
