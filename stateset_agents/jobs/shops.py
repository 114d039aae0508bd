"""The shop that a job's episodes are played in: generated ones, or copies of one in a database."""

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.errors import BadInput
from stateset_agents.files import replace_text
from stateset_agents.jobs.config import JobConfig
from stateset_agents.tools.shop.generate import Shops, generate
from stateset_agents.tools.shop.sqlite import Shop

if TYPE_CHECKING:
    from stateset_agents.tools.shop.postgres import PostgresShop

DIGEST = "shop.sha256"
"""In a run's folder: which copy of a database its episodes are played in."""


def shops_of(config: JobConfig) -> Shops:
    """Where a scenario's shop comes from. With `database` it is a copy as the job found it, the same for every scenario; the
    database itself is only read. Raises BadInput if there is none."""
    if config.database is None:
        return generate
    copied = _copied(config.database, config.database_schema)
    return lambda seed, split: copied


@functools.lru_cache(maxsize=1)
def _copied(database: str, schema: str) -> Shop:
    shop = postgres_shop(database, schema)
    try:
        return shop.snapshot()
    finally:
        shop.close()


def stored_shop(database: str, schema: str) -> "PostgresShop":
    """The shop in a schema of a PostgreSQL database, migrated to this version. Raises BadInput if there is none."""
    shop = postgres_shop(database, schema)
    try:
        shop.check()
        shop.migrate()
    except BadInput:
        shop.close()
        raise
    return shop


def postgres_shop(database: str, schema: str) -> "PostgresShop":
    """A schema of a PostgreSQL database, with or without a shop in it. Raises BadInput if it cannot be reached."""
    if not database.startswith(("postgresql://", "postgres://")):
        raise BadInput(
            f"--database: expected postgresql://user@host/name, found {database[:40]!r}."
        )
    try:
        from stateset_agents.tools.shop.postgres import PostgresShop
    except ImportError:
        raise BadInput("Expected psycopg, found none: install the extra 'postgres'.") from None
    return PostgresShop(database, schema=schema)


def check_unchanged(config: JobConfig, run: Path) -> None:
    """Keep with a run which copy of a database it plays in. Raises BadInput if a resumed run would play in another."""
    if config.database is None:
        return
    shop = _copied(config.database, config.database_schema)
    digest, kept = hashlib.sha256(shop.connection.serialize()).hexdigest(), run / DIGEST
    if not kept.is_file():
        replace_text(kept, digest)
    elif kept.read_text() != digest:
        raise BadInput(
            "Expected the shop that this run began with, found that the database has changed since: begin a new run."
        )
