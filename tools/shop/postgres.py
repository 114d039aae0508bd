"""A shop in PostgreSQL: the same tables, tools and rules, for any number of processes.

Each shop is a schema. Attempts queue on one advisory lock, because the audit log is one chain; an attempt is one transaction of
a few milliseconds.
"""

import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier
from psycopg_pool import ConnectionPool

from stateset_agents.errors import BadInput
from stateset_agents.tools.shop.database import TRACKED, WORD, Database, Impossible, Result, Row
from stateset_agents.tools.shop.sqlite import Shop, sql

Connection = psycopg.Connection[dict[str, Any]]

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (("0001", ("schema", "guards_postgres")),)
"""Migrations in order: a version, and its SQL files."""

NUMBERED = ("movements", "shipment_events", "audit")
"""Tables whose rows are in order."""
_SERIAL = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"


class PostgresShop(Database):
    """A shop in a schema of a PostgreSQL database, reached over a pool of connections.

    Raises BadInput if the server cannot be reached; the message has no password.
    """

    def __init__(self, url: str, *, schema: str = "shop", connections: int = 8) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", schema):
            raise BadInput(f"Expected a schema of small letters and digits, found {schema!r}.")
        self.schema = schema
        self._mine = threading.local()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url, connection_class=psycopg.Connection[dict[str, Any]], open=False, min_size=1, max_size=connections,
            kwargs={"autocommit": True, "row_factory": dict_row, "options": f"-c search_path={schema}"},
        )  # fmt: skip
        try:
            with psycopg.connect(url, connect_timeout=10):
                self._pool.open(wait=True, timeout=10)
        except psycopg.Error as error:
            where = re.sub(r"//[^@/]*@", "//…@", url)
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f"Expected PostgreSQL at {where}, found: {reason}") from None

    def migrate(self) -> None:
        """Create or migrate the schema. Concurrent calls wait for each other."""
        with self._pool.connection() as connection, connection.transaction():
            self._lock(connection)
            connection.execute(
                SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(self.schema))
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS migrations(version TEXT PRIMARY KEY, "
                "at TIMESTAMPTZ NOT NULL DEFAULT now())"
            )
            done = {row["version"] for row in connection.execute("SELECT version FROM migrations")}
            for version, files in MIGRATIONS:
                if version in done:
                    continue
                for file in files:
                    connection.execute(SQL(sql(file).replace("SERIAL", _SERIAL)))
                connection.execute("INSERT INTO migrations(version) VALUES(%s)", (version,))

    def load(self, shop: Shop) -> None:
        """Copy a SQLite shop into an empty schema. Changes are logged afterwards."""
        if self.first("SELECT name FROM meta LIMIT 1") is not None:
            raise BadInput(f"Expected an empty schema, found a shop in {self.schema!r}.")
        with self._pool.connection() as connection, connection.transaction():
            for table in _tables():
                rows = shop.all(f"SELECT * FROM {table}")
                columns = [c for c in (rows[0] if rows else ()) if c != "seq"]
                if not columns:
                    continue
                into = SQL("COPY {} ({}) FROM STDIN").format(
                    Identifier(table), SQL(", ").join(map(Identifier, columns))
                )
                with connection.cursor().copy(into) as copy:
                    for row in rows:
                        copy.write_row([row[column] for column in columns])
            for table in TRACKED:
                keys = _keys(connection, self.schema, table)
                connection.execute(
                    SQL(
                        "CREATE TRIGGER log_{} AFTER INSERT OR UPDATE OR DELETE ON {} "
                        "FOR EACH ROW EXECUTE FUNCTION log_change({})"
                    ).format(SQL(table), Identifier(table), SQL(", ").join(keys))
                )

    def check(self) -> None:
        """Raises BadInput if there is no shop in the schema, or it may not be read. Nothing is made."""
        try:
            made = self.first("SELECT name FROM meta LIMIT 1")
        except psycopg.errors.UndefinedTable:
            made = None
        except psycopg.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(
                f"Expected a shop in schema {self.schema!r} that can be read, found: {reason}"
            ) from None
        if made is None:
            raise BadInput(
                f"Expected a shop in schema {self.schema!r}, found none. Make one: stateset-agents shop create --database …"
            )

    def snapshot(self) -> Shop:
        """A copy in memory as it is now, read in one transaction; its changes count from here. Raises BadInput if there is none."""
        self.check()
        shop = Shop.empty()
        with self._pool.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            shop.run("BEGIN")
            for table in _tables():
                if table in ("change_log", "outbox"):
                    continue
                numbered = table in NUMBERED
                rows = connection.execute(
                    SQL(f"SELECT * FROM {table}{' ORDER BY seq' if numbered else ''}")
                ).fetchall()
                if (
                    not numbered
                ):  # the same rows in the same order, however they lie in the database
                    rows.sort(key=lambda row: [str(value) for value in row.values()])
                for row in rows:
                    shop.insert(table, **{c: v for c, v in row.items() if c != "seq"})
            shop.run("COMMIT")
        shop.log_changes()
        return shop

    def close(self) -> None:
        self._pool.close()

    def all(self, sql: str, *values: object) -> list[Row]:
        with self._connection() as connection, _refusals():
            return connection.execute(_placed(sql), values).fetchall()

    def run(self, sql: str, *values: object) -> None:
        with self._connection() as connection, _refusals():
            connection.execute(_placed(sql), values)

    def search(self, words: str, *, limit: int) -> list[str]:
        wanted = " | ".join(WORD.findall(words))
        if not wanted:
            return []
        rows = self.all(
            "SELECT sku FROM catalogue, to_tsquery('english', ?) AS query "
            "WHERE to_tsvector('english', words) @@ query "
            "ORDER BY ts_rank(to_tsvector('english', words), query) DESC, sku LIMIT ?",
            wanted, limit,
        )  # fmt: skip
        return [row["sku"] for row in rows]

    def attempt(self, work: Callable[[], Result]) -> Result:
        with self._pool.connection() as connection, connection.transaction():
            self._lock(connection)
            self._mine.connection = connection
            try:
                return work()
            finally:
                del self._mine.connection

    @contextmanager
    def atomically(self) -> Iterator[None]:
        with self._connection() as connection, connection.transaction():
            yield

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """The connection of this thread's attempt, or any connection for a read outside an attempt."""
        mine = getattr(self._mine, "connection", None)
        if mine is not None:
            yield mine
            return
        with self._pool.connection() as connection:
            yield connection

    def _lock(self, connection: Connection) -> None:
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"stateset/{self.schema}",)
        )


def _tables() -> list[str]:
    """Every table, those first that others point to."""
    return [*re.findall(r"CREATE TABLE (\w+)", sql("schema")), "catalogue"]


def _keys(connection: Connection, schema: str, table: str) -> list[Any]:
    """A table's key columns, in the key's order."""
    rows = connection.execute(
        "SELECT attname FROM pg_index JOIN pg_class ON pg_class.oid = indrelid "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "JOIN unnest(indkey) WITH ORDINALITY AS k(number, place) ON TRUE "
        "JOIN pg_attribute ON attrelid = indrelid AND attnum = number "
        "WHERE indisprimary AND nspname = %s AND relname = %s ORDER BY place",
        (schema, table),
    )
    return [Identifier(row["attname"]) for row in rows]


@functools.lru_cache(maxsize=1024)
def _placed(sql: str) -> Any:
    """`?` as psycopg wants it."""
    return sql.replace("%", "%%").replace("?", "%s")


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        raise Impossible(str(error).strip().splitlines()[0]) from None
