"""Where the endpoint keeps its conversations: LangGraph's checkpointer and a journal, in memory or in a database."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from stateset_agents.errors import BadInput
from stateset_agents.server.journal import (
    Database,
    Journal,
    PostgresTables,
    SqliteTables,
    Statement,
)

MAX_CONVERSATIONS = 2000
"""Conversations in memory; the least recently used are dropped."""
MAX_CHARACTERS = 100_000_000
"""Characters of conversations in memory; the least recently used are dropped."""
WAIT = 10.0
"""Seconds to wait for a database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation after its last answered turn."""

    id: str
    """LangGraph's thread id."""
    checkpoint: str | None = None
    """The checkpoint that the next turn starts from; those of a failed turn are ignored."""
    pending: str | None = None
    """Id of the tool call that asks for the customer's confirmation."""


class Conversations:
    """Conversations by a client's own id for them, or by a hash of their messages.

    Words alone never tie two clients together: what two conversations have said alike belongs to neither of them, and who goes on
    from there begins anew, with the words and without what the tools know.
    """

    def __init__(
        self, saver: BaseCheckpointSaver[str] | None = None, tables: Database | None = None
    ) -> None:
        self.saver = saver or InMemorySaver()
        self.tables = tables or SqliteTables()
        self.journal = Journal(self.tables)
        self._forgets = saver is None
        self.going_on: set[asyncio.Task[None]] = set()
        """Runs whose clients have left and that come to their end all the same."""

    async def find(self, key: str) -> Conversation | None:
        """The one conversation of this key."""
        rows = await self.tables.run(
            "SELECT thread, checkpoint, pending FROM stateset_conversation WHERE key = ?", key
        )
        if not rows or not rows[0][0]:
            return None
        return Conversation(id=rows[0][0], checkpoint=rows[0][1], pending=rows[0][2])

    async def of_thread(self, thread: str, graph: str) -> Conversation | None:
        """The conversation of a thread with a graph, after its last answered turn."""
        rows = await self.tables.run(
            "SELECT thread, checkpoint, pending, key FROM stateset_conversation WHERE thread = ? ORDER BY at DESC LIMIT 1",
            thread,
        )  # fmt: skip
        if not rows or not str(rows[0][3]).startswith(f"{graph}/"):
            return None
        return Conversation(id=rows[0][0], checkpoint=rows[0][1], pending=rows[0][2])

    async def keep(
        self,
        conversation: Conversation,
        old: str,
        new: str,
        *,
        checkpoint: str,
        pending: str | None,
        size: int = 0,
        ended: Sequence[Statement] = (),
    ) -> None:
        """Store a conversation under its newest key only, together with what ends its turn. A key that another one has too is
        nobody's from then on."""
        after = replace(conversation, checkpoint=checkpoint, pending=pending)
        statements: list[Statement] = [(
            ("INSERT INTO stateset_conversation(key, thread, checkpoint, pending, size, at) VALUES(?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(key) DO UPDATE SET thread = CASE WHEN stateset_conversation.thread = excluded.thread "
            "THEN excluded.thread ELSE '' END, checkpoint = excluded.checkpoint, pending = excluded.pending, "
            "size = excluded.size, at = excluded.at"),
            (new, after.id, after.checkpoint, after.pending, size, time.time()),
        )]  # fmt: skip
        if old != new:
            forget = "DELETE FROM stateset_conversation WHERE key = ? AND thread = ?"
            statements.append((forget, (old, conversation.id)))
        await self.tables.together([*statements, *ended])
        if self._forgets:
            await self._make_room()

    async def _make_room(self) -> None:
        """Drop the oldest conversations of a server that keeps them in memory."""
        rows = await self.tables.run(
            "SELECT key, thread, size FROM stateset_conversation ORDER BY at DESC"
        )
        characters = 0
        for number, (key, thread, size) in enumerate(rows):
            characters += size
            if number < MAX_CONVERSATIONS and (characters <= MAX_CHARACTERS or number == 0):
                continue
            await self.tables.run("DELETE FROM stateset_conversation WHERE key = ?", key)
            if thread:
                await self.saver.adelete_thread(thread)


@asynccontextmanager
async def kept_in(state: str | None) -> AsyncIterator[Conversations]:
    """Conversations in memory, in a SQLite file, or in a PostgreSQL database (`postgresql://…`), whose tables are created if
    missing. Raises BadInput if the database cannot be used."""
    if state is None:
        yield Conversations()
        return
    async with AsyncExitStack() as open_:
        postgres = state.startswith(("postgresql://", "postgres://"))
        try:
            kept = await (_postgres if postgres else _sqlite)(state, open_)
        except ImportError as error:
            extra = "postgres" if postgres else "sqlite"
            raise BadInput(
                f"--state: expected the package {error.name}, found none: install the extra '{extra}'."
            ) from None
        yield kept


async def _sqlite(file: str, open_: AsyncExitStack) -> Conversations:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    try:
        saver = await open_.enter_async_context(AsyncSqliteSaver.from_conn_string(file))
        # Other processes write to the file too, and each waits for the other.
        await saver.conn.execute("PRAGMA busy_timeout=30000")
        await saver.setup()
        tables = SqliteTables(file)
        open_.callback(tables.close)
    except sqlite3.Error as error:
        raise BadInput(f"--state: expected a SQLite file at {file!r}, found: {error}") from None
    return Conversations(saver, tables)


async def _postgres(url: str, open_: AsyncExitStack) -> Conversations:
    import psycopg
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]]
    # A connection that the database has cut is found out before it is lent, and replaced.
    check = AsyncConnectionPool.check_connection
    pool = AsyncConnectionPool(url, open=False, max_size=8, kwargs=options, check=check)
    open_.push_async_callback(pool.close)
    try:
        await pool.open(wait=True, timeout=WAIT)
        saver, tables = AsyncPostgresSaver(pool), PostgresTables(pool)
        await saver.setup()
        await tables.create()
    except psycopg.Error as error:
        raise BadInput(f"--state: expected a database at postgresql://…, found: {error}") from None
    return Conversations(saver, tables)
