"""A shop is one small SQLite database, cloned for every episode, with strict constraints. Triggers log every change of a
business table, so that an episode's changes are one query."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources

from stateset_agents.tools.shop.database import TRACKED, WORD, Database, Impossible, Result, Row


class Shop(Database):
    """A shop in one SQLite connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        self.connection = connection
        self._points = 0
        self._one_at_a_time = threading.RLock()

    @classmethod
    def empty(cls) -> "Shop":
        """An empty shop in memory. Changes are logged after `log_changes`."""
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute(
            "PRAGMA page_size = 1024"
        )  # most tables are small: a quarter of the copying
        connection.executescript(sql("schema").replace("SERIAL", "INTEGER PRIMARY KEY"))
        connection.executescript(sql("guards_sqlite"))
        return cls(connection)

    def all(self, sql: str, *values: object) -> list[Row]:
        return [dict(row) for row in self._execute(sql, values)]

    def first(self, sql: str, *values: object) -> Row | None:
        row = self._execute(sql, values).fetchone()
        return dict(row) if row else None

    def run(self, sql: str, *values: object) -> None:
        self._execute(sql, values)

    def _execute(self, sql: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self.connection.execute(sql, values)
        except (sqlite3.IntegrityError, OverflowError) as error:
            raise Impossible(str(error)) from None

    def search(self, words: str, *, limit: int) -> list[str]:
        wanted = " OR ".join(f'"{word}"' for word in WORD.findall(words))
        if not wanted:
            return []
        rows = self.all(
            "SELECT sku FROM catalogue WHERE catalogue MATCH ? ORDER BY bm25(catalogue), sku LIMIT ?",
            wanted, limit,
        )  # fmt: skip
        return [row["sku"] for row in rows]

    def attempt(self, work: Callable[[], Result]) -> Result:
        with self._one_at_a_time, self.atomically():
            return work()

    @contextmanager
    def atomically(self) -> Iterator[None]:
        self._points += 1
        point = f"p{self._points}"
        self.connection.execute(f"SAVEPOINT {point}")
        try:
            yield
        except BaseException:
            self.connection.execute(f"ROLLBACK TO {point}")
            raise
        finally:
            self.connection.execute(f"RELEASE {point}")
            self._points -= 1

    def clone(self) -> "Shop":
        """An independent copy in memory."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        copy.deserialize(self.connection.serialize())
        return Shop(copy)

    def close(self) -> None:
        self.connection.close()

    def log_changes(self) -> None:
        """Log changes from now on, for `changes`."""
        for table in TRACKED:
            info = self.connection.execute(f"PRAGMA table_info({table})").fetchall()
            columns = [row[1] for row in info]
            keys = [row[1] for row in sorted(info, key=lambda row: int(row[5])) if row[5]]

            def as_json(row: str, columns: list[str] = columns) -> str:
                return "json_object(" + ", ".join(f"'{c}', {row}.{c}" for c in columns) + ")"

            def key(row: str, keys: list[str] = keys) -> str:
                return " || '/' || ".join(f"{row}.{k}" for k in keys)

            for event, before, after, row in (
                ("INSERT", "NULL", as_json("NEW"), "NEW"),
                ("UPDATE", as_json("OLD"), as_json("NEW"), "NEW"),
                ("DELETE", as_json("OLD"), "NULL", "OLD"),
            ):
                self.connection.execute(
                    f"CREATE TRIGGER {table}_{event} AFTER {event} ON {table} BEGIN INSERT INTO "
                    f"change_log(tab, key, before, after) VALUES('{table}', {key(row)}, {before}, {after}); END"
                )


def sql(name: str) -> str:
    """A file of SQL that ships with the shop."""
    return resources.files("stateset_agents.tools.shop").joinpath(f"{name}.sql").read_text()
