"""Erases a customer's runs, or the oldest ones, for good."""

import time
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.traces.records import customer_hash
from stateset_agents.traces.store import TraceStore
from stateset_agents.traces.tables import Tables

_THEIRS = (
    "(customer = ? OR (customer = '' AND thread <> '' AND thread IN "
    "(SELECT thread FROM runs WHERE customer = ?)))"
)
"""A customer's runs, including earlier ones of the same threads, before the customer was known."""
_LEARNED = (
    "WITH RECURSIVE learned(name) AS (SELECT adapter FROM trained WHERE customer = ? OR run IN "
    f"(SELECT id FROM runs WHERE {_THEIRS}) UNION SELECT adapters.name FROM adapters JOIN learned ON "
    "adapters.parent = learned.name) SELECT name FROM learned ORDER BY name"
)
SIZES = (
    "SELECT runs.id, LENGTH(head) + COALESCE((SELECT SUM(LENGTH(prompt) + LENGTH(sampled) + LENGTH(logprobs) + "
    "LENGTH(about)) FROM calls WHERE calls.run = runs.id), 0) + COALESCE((SELECT SUM(LENGTH(body)) FROM tools "
    "WHERE tools.run = runs.id), 0) FROM runs ORDER BY started DESC, runs.id"
)
"""Runs with their size in bytes, newest first."""


def forget(store: TraceStore, customer: str) -> tuple[int, list[str]]:
    """Erase every run of a customer. Returns their number, and the adapters that learned from them, including adapters trained
    from those."""
    if not customer:
        raise BadInput("Expected a customer's id, found ''.")
    both = (customer, customer)

    def erase(tables: Tables) -> tuple[int, list[str]]:
        adapters = [str(row[0]) for row in tables.read(_LEARNED, customer, *both)]
        store.abandon(
            str(row[0]) for row in tables.read(f"SELECT id FROM runs WHERE {_THEIRS}", *both)
        )
        with tables.transaction():
            erased = tables.write(f"DELETE FROM runs WHERE {_THEIRS}", [both])
            tables.write("UPDATE trained SET customer = '' WHERE customer = ?", [(customer,)])
            tables.write(
                "INSERT INTO forgotten VALUES(?, ?) ON CONFLICT(customer) DO UPDATE SET at = excluded.at",
                [(customer_hash(customer), time.time())],
            )
        return erased, adapters

    result = store.exclusively(erase)
    store.exclusively(lambda tables: tables.shrink())
    return result


def prune(store: TraceStore, *, days: float | None = None, megabytes: float | None = None) -> int:
    """Erase the oldest runs: those that began more than `days` days ago, and then as many as exceed `megabytes`. Returns their
    number."""
    erased = 0
    if days is not None:
        erased += _erase(store, "started < ?", (time.time() - days * 86_400,))
    if megabytes is not None:
        sizes = list(store.read(SIZES))
        # Indexes and half-empty pages take room too: what is wanted is a file of that size.
        store.exclusively(lambda tables: tables.shrink())
        payload = sum(size for _, size in sizes)
        room = megabytes * 1e6 / max(1.0, _bytes_of(store) / payload if payload else 1.0)
        doomed = []
        for run, size in sizes:
            room -= size
            if room < 0:
                doomed.append((str(run),))
        erased += _erase(store, "id = ?", *doomed)
    if erased:
        store.exclusively(lambda tables: tables.shrink())
    return erased


def _bytes_of(store: TraceStore) -> float:
    """The size of a SQLite store's file; 0 for PostgreSQL, whose files are its own business."""
    file = Path(store.place)
    return float(file.stat().st_size) if file.is_file() else 0.0


def _erase(store: TraceStore, where: str, *values: tuple[object, ...]) -> int:
    def erase(tables: Tables) -> int:
        with tables.transaction():
            return tables.write(f"DELETE FROM runs WHERE {where}", values)

    return store.exclusively(erase)
