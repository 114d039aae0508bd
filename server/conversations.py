"""Where the endpoint keeps its conversations: LangGraph's checkpointer and store, in memory or in a database."""

import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from stateset_agents.errors import BadInput

MAX_CONVERSATIONS = 2000
"""Conversations in memory; the least recently used are dropped."""
WAIT = 10.0
"""Seconds to wait for a database."""
_PLACE = ("conversations",)


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
    """Conversations by a hash of their messages. Each has one key, that of its last answered turn. Someone who writes the same
    words as an earlier customer must not get into that customer's conversation, which may be verified."""

    def __init__(
        self,
        saver: BaseCheckpointSaver[str] | None = None,
        store: BaseStore | None = None,
    ) -> None:
        self.saver = saver or InMemorySaver()
        self.store = store or InMemoryStore()
        self.answering: set[str] = set()
        """Threads with a turn under way in this process."""
        self._keys: OrderedDict[str, str] | None = OrderedDict() if saver is None else None

    async def find(self, key: str) -> Conversation | None:
        item = await self.store.aget(_PLACE, key)
        if item is None:
            return None
        if self._keys is not None:
            self._keys.move_to_end(key)
        return Conversation(**item.value)

    async def keep(
        self,
        conversation: Conversation,
        old: str,
        new: str,
        *,
        checkpoint: str,
        pending: str | None,
    ) -> None:
        """Store a conversation under its newest key only."""
        before = await self.find(old)
        if before is not None and before.id == conversation.id:
            await self._forget(old)
        after = replace(conversation, checkpoint=checkpoint, pending=pending)
        value = {"id": after.id, "checkpoint": after.checkpoint, "pending": after.pending}
        await self.store.aput(_PLACE, new, value)
        if self._keys is not None:
            replaced = self._keys.get(
                new
            )  # who said the very same words cannot go on: drop what was kept
            if replaced not in (None, after.id) and replaced not in self.answering:
                await self.saver.adelete_thread(str(replaced))
            self._keys[new] = after.id
            self._keys.move_to_end(new)
            while len(self._keys) > MAX_CONVERSATIONS:
                oldest, thread = next(iter(self._keys.items()))
                await self._forget(oldest)
                await self.saver.adelete_thread(thread)

    async def _forget(self, key: str) -> None:
        await self.store.adelete(_PLACE, key)
        if self._keys is not None:
            self._keys.pop(key, None)


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
    from langgraph.store.sqlite.aio import AsyncSqliteStore

    try:
        saver = await open_.enter_async_context(AsyncSqliteSaver.from_conn_string(file))
        store = await open_.enter_async_context(AsyncSqliteStore.from_conn_string(file))
        await saver.setup()
        await store.setup()
    except sqlite3.Error as error:
        raise BadInput(f"--state: expected a SQLite file at {file!r}, found: {error}") from None
    return Conversations(saver, store)


async def _postgres(url: str, open_: AsyncExitStack) -> Conversations:
    import psycopg
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from langgraph.store.postgres.aio import AsyncPostgresStore
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]]
    pool = AsyncConnectionPool(url, open=False, max_size=8, kwargs=options)
    open_.push_async_callback(pool.close)
    try:
        await pool.open(wait=True, timeout=WAIT)
        saver, store = AsyncPostgresSaver(pool), AsyncPostgresStore(pool)
        await saver.setup()
        await store.setup()
    except psycopg.Error as error:
        raise BadInput(f"--state: expected a database at postgresql://…, found: {error}") from None
    return Conversations(saver, store)
