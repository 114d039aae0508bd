"""A shop is one small SQLite database: cloned for every episode, strict enough to refuse nonsense.

Every change to a business table is logged by trigger, so what an episode did is a query and not a
comparison of two dumps.
"""

import functools
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from stateset_agents.scenario import Change
from stateset_agents.tools.vocabulary import CARRIERS, MONTHS, name
from stateset_agents.tools.wording import Split

TRACKED = ("customers", "products", "stock", "orders", "lines", "shipments", "payments", "returns",
           "promotions", "tickets")  # fmt: skip
TODAY = 200
"""The virtual clock starts on this day of the year; it stands still within an episode."""

Row = dict[str, Any]


class Shop:
    """One database. Reads return plain dicts; writes go through `atomically`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        self.connection = connection

    def all(self, sql: str, *values: object) -> list[Row]:
        return [dict(row) for row in self.connection.execute(sql, values)]

    def one(self, sql: str, *values: object) -> Row | None:
        row = self.connection.execute(sql, values).fetchone()
        return dict(row) if row else None

    def run(self, sql: str, *values: object) -> None:
        self.connection.execute(sql, values)

    @contextmanager
    def atomically(self) -> Iterator[None]:
        """A savepoint: whatever raises inside leaves nothing behind."""
        self.connection.execute("SAVEPOINT act")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK TO act")
            self.connection.execute("RELEASE act")
            raise
        self.connection.execute("RELEASE act")

    def next_id(self, prefix: str) -> str:
        """R1, R2, ...: the same acts give the same ids in every clone."""
        self.run(
            "INSERT INTO counters VALUES(?, 1) ON CONFLICT(name) DO UPDATE SET value = value + 1",
            prefix,
        )
        row = self.one("SELECT value FROM counters WHERE name = ?", prefix)
        assert row is not None
        return f"{prefix}{row['value']}"

    @property
    def today(self) -> int:
        row = self.one("SELECT value FROM meta WHERE name = 'today'")
        assert row is not None
        return int(row["value"])

    def clone(self) -> "Shop":
        """An independent copy in memory."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        copy.deserialize(self.connection.serialize())
        return Shop(copy)

    def close(self) -> None:
        self.connection.close()

    def changes(self) -> tuple[Change, ...]:
        """What differs from the shop as generated, cell by cell, in order of table and key."""
        net: dict[tuple[str, str], tuple[Row | None, Row | None]] = {}
        for entry in self.all("SELECT * FROM change_log ORDER BY seq"):
            place = (entry["tab"], entry["key"])
            before = json.loads(entry["before"]) if entry["before"] else None
            after = json.loads(entry["after"]) if entry["after"] else None
            net[place] = (net[place][0] if place in net else before, after)
        found = []
        for (table, key), (before, after) in sorted(net.items()):
            if after is None:
                if before is not None:
                    found.append(Change(table=table, key=key, column="*", value=None))
                continue
            old = before or {}
            found += [
                Change(table=table, key=key, column=column, value=value)
                for column, value in after.items()
                if column not in old or old[column] != value
            ]
        return tuple(found)


def _log_changes(connection: sqlite3.Connection) -> None:
    for table in TRACKED:
        info = connection.execute(f"PRAGMA table_info({table})").fetchall()
        columns = [row[1] for row in info]
        keys = [row[1] for row in info if row[5]]

        def as_json(row: str, columns: list[str] = columns) -> str:
            return "json_object(" + ", ".join(f"'{c}', {row}.{c}" for c in columns) + ")"

        def key(row: str, keys: list[str] = keys) -> str:
            return " || '/' || ".join(f"{row}.{k}" for k in keys)

        for event, before, after, row in (
            ("INSERT", "NULL", as_json("NEW"), "NEW"),
            ("UPDATE", as_json("OLD"), as_json("NEW"), "NEW"),
            ("DELETE", as_json("OLD"), "NULL", "OLD"),
        ):
            connection.execute(
                f"CREATE TRIGGER {table}_{event} AFTER {event} ON {table} BEGIN INSERT INTO "
                f"change_log(tab, key, before, after) VALUES('{table}', {key(row)}, {before}, {after}); END"
            )


@functools.lru_cache(maxsize=256)
def generate(seed: int, split: Split) -> Shop:
    """The shop of a seed: 12 customers, 16 products, 30 orders; the same seed, the same bytes.

    Treat the result as a master copy: `clone()` it before anything is changed.
    """
    rng = random.Random(f"shop/{split}/{seed}")
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(
        resources.files("stateset_agents.tools").joinpath("schema.sql").read_text()
    )
    shop = Shop(connection)
    shop.run("BEGIN")
    shop.run("INSERT INTO meta VALUES('today', ?)", str(TODAY))
    items: dict[str, None] = {}
    while len(items) < 16:
        items[f"{name(rng, split, 'adjective')} {name(rng, split, 'noun')}"] = None
    for number, item in enumerate(items):
        cost = rng.randint(300, 9000)
        sku = f"P{number + 10}"
        price = int(cost * rng.uniform(1.3, 2.2)) // 10 * 10
        shop.run("INSERT INTO products VALUES(?, ?, ?, ?)", sku, item, max(price, cost), cost)
        shop.run("INSERT INTO stock VALUES(?, ?, 0)", sku, rng.choice((0, *range(5, 60))))
    for number in range(12):
        person = name(rng, split, "first")
        shop.run(
            "INSERT INTO customers VALUES(?, ?, ?, ?, ?)", f"C{number}", person,
            f"{person.lower()}{number}@example.com", f"{rng.randrange(100000):05d}",
            rng.choice(("standard", "standard", "standard", "gold")),
        )  # fmt: skip
    codes: dict[str, None] = {}
    while len(codes) < 3:
        codes[name(rng, split, "code")] = None
    for code in codes:
        percent = rng.choice((10, 15, 20, 25))
        until = TODAY + rng.choice((-20, -5, 10, 30, 90))
        shop.run("INSERT INTO promotions VALUES(?, ?, ?)", f"{code}{percent}", percent, until)
    for number in rng.sample(range(1000, 10000), 30):
        _place(shop, rng, f"W{number}", split)
    shop.run("COMMIT")
    _log_changes(connection)
    return shop


def _place(shop: Shop, rng: random.Random, order: str, split: Split) -> None:
    customer = rng.choice(shop.all("SELECT * FROM customers"))
    status = rng.choice(("pending", "shipped", "delivered", "delivered"))
    placed = TODAY - rng.randint(1, 3) if status == "pending" else TODAY - rng.randint(4, 70)
    shop.run(
        "INSERT INTO orders VALUES(?, ?, ?, ?, ?, NULL, ?)",
        order, customer["id"], status, street(rng, split), customer["zip"], placed,
    )  # fmt: skip
    total = 0
    for number, product in enumerate(
        rng.sample(shop.all("SELECT * FROM products"), rng.randint(1, 3))
    ):
        total += product["price"]
        shop.run(
            "INSERT INTO lines VALUES(?, ?, ?, 1, ?, 0, 0)",
            order, f"L{number + 1}", product["sku"], product["price"],
        )  # fmt: skip
    shop.run("INSERT INTO payments VALUES(?, ?, 'capture', NULL, ?)", f"CAP-{order}", order, total)
    if status == "shipped":
        shop.run(
            "INSERT INTO shipments VALUES(?, ?, 'in transit', ?, NULL)",
            order, rng.choice(CARRIERS), TODAY + rng.randint(1, 12),
        )  # fmt: skip
    elif status == "delivered":
        arrived = min(TODAY - 1, placed + rng.randint(2, 6))
        shop.run(
            "INSERT INTO shipments VALUES(?, ?, 'delivered', ?, ?)",
            order, rng.choice(CARRIERS), arrived, arrived,
        )  # fmt: skip


def street(rng: random.Random, split: Split) -> str:
    """A made-up street line, such as '12 Birch Road'."""
    return f"{rng.randint(1, 99)} {name(rng, split, 'street')} {name(rng, split, 'street_kind')}"


def show_day(day: int) -> str:
    """Day 200 of the virtual year as customers say it: '20 July' (30-day months)."""
    month, rest = divmod(day - 1, 30)
    return f"{rest + 1} {MONTHS[month % 12]}"
