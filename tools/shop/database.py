"""The database interface of the tools: SQL with `?` for values, transactions, and a log of changes."""

import abc
import functools
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from stateset_agents.scenario import Change
from stateset_agents.tools.shop.embedding_search import Meaning

Row = dict[str, Any]
Result = TypeVar("Result")

TRACKED = (
    "customers", "products", "stock", "promotions", "orders", "lines", "shipments", "parcels", "payments",
    "redemptions", "returns", "claim_photos", "reservations", "backorders", "tickets", "signals",
    "price_changes",
)  # fmt: skip
"""Tables whose changes are logged cell by cell."""


FREE_TEXT = frozenset(
    {("tickets", "reason"), ("returns", "reason"), ("orders", "hold"), ("price_changes", "reason")}
)
"""Cells with an agent's free text: only whether they are filled counts."""
ANY_TEXT = "…"
WORD = re.compile(r"\w+")


class Impossible(Exception):
    """A constraint of the database refused a write."""


class Database(abc.ABC):
    """A shop's tables. Reads return plain dicts; a write that a constraint refuses raises Impossible."""

    meaning: Meaning | None = None
    """The search by meaning, if there is one, besides the search by words."""

    @abc.abstractmethod
    def all(self, sql: str, *values: object) -> list[Row]:
        """Every row of a query."""

    @abc.abstractmethod
    def run(self, sql: str, *values: object) -> None:
        """Run a statement."""

    @abc.abstractmethod
    def attempt(self, work: Callable[[], Result]) -> Result:
        """Run `work` in one transaction, which is rolled back if it raises. Attempts on one shop run one after the other,
        because the audit log is one chain."""

    @abc.abstractmethod
    def atomically(self) -> AbstractContextManager[None]:
        """A part of an attempt (savepoint) that is rolled back if it raises."""

    def first(self, sql: str, *values: object) -> Row | None:
        """The first row of a query, or None."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None

    def the(self, sql: str, *values: object) -> Row:
        """The only row of a query."""
        row = self.first(sql, *values)
        if row is None:
            raise LookupError(f"Expected a row, found none for {values!r}.")
        return row

    def insert(self, table: str, **values: object) -> None:
        """A row by its columns' names."""
        self.run(_insert(table, tuple(values)), *values.values())

    def next_id(self, prefix: str) -> str:
        """A new id R1, R2, …: the same acts give the same ids in every copy of a shop."""
        row = self.the(
            "INSERT INTO counters(name, value) VALUES(?, 1) "
            "ON CONFLICT(name) DO UPDATE SET value = counters.value + 1 RETURNING value",
            prefix,
        )
        return f"{prefix}{row['value']}"

    def emit(self, topic: str, **payload: object) -> None:
        """Put a message for other systems into the outbox, in the same transaction as its cause."""
        self.insert("outbox", topic=topic, payload=json.dumps(payload, sort_keys=True))

    @abc.abstractmethod
    def search(self, words: str, *, limit: int) -> list[str]:
        """Skus of products by words in their name, category and attributes, best first. Words are stemmed; a word without
        matches does not hide products that match the others."""

    @property
    def today(self) -> int:
        """The day of the shop's virtual calendar."""
        return int(self.the("SELECT value FROM meta WHERE name = 'today'")["value"])

    @property
    def hour(self) -> int:
        """The hour of the shop's virtual day."""
        return int(self.the("SELECT value FROM meta WHERE name = 'hour'")["value"])

    def advance(self, *, days: int) -> None:
        """Move the virtual clock forward."""
        self.run("UPDATE meta SET value = ? WHERE name = 'today'", str(self.today + days))

    def changes(self) -> tuple[Change, ...]:
        """Changes since the shop was generated, cell by cell, in order of table and key."""
        net: dict[tuple[str, str], tuple[Row | None, Row | None]] = {}
        for entry in self.all("SELECT * FROM change_log ORDER BY seq"):
            place = (entry["tab"], entry["key"])
            before = json.loads(entry["before"]) if entry["before"] else None
            after = json.loads(entry["after"]) if entry["after"] else None
            net[place] = (net[place][0] if place in net else before, after)
        changes = []
        for (table, key), (before, after) in sorted(net.items()):
            if after is None:
                if before is not None:
                    changes.append(Change(table=table, key=key, column="*", value=None))
                continue
            old = before or {}
            changes += [
                Change(
                    table=table,
                    key=key,
                    column=column,
                    value=ANY_TEXT
                    if after[column] and (table, column) in FREE_TEXT
                    else after[column],
                )
                for column in sorted(after)
                if column not in old or old[column] != after[column]
            ]
        return tuple(changes)


@functools.lru_cache(maxsize=256)
def _insert(table: str, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table}({', '.join(columns)}) VALUES({marks})"
