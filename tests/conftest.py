"""Shared parts: the seed policy on a running engine, and scenarios."""

import asyncio
import itertools
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stateset_agents.jobs import SEED_POLICY
from stateset_agents.policy import close_connections
from stateset_agents.scenario import Scenario
from stateset_agents.server.engine.process import running_engine
from stateset_agents.tools.postgres import PostgresShop
from stateset_agents.tools.scenarios import scenarios
from stateset_agents.tools.world import generate
from tests import servers


@pytest.fixture(scope="session")
def development() -> list[Scenario]:
    return list(itertools.islice(scenarios(seed=500, split="development"), 25))


@pytest.fixture(scope="session")
def training() -> list[Scenario]:
    return list(itertools.islice(scenarios(seed=500, split="train"), 25))


@pytest.fixture(autouse=True)
async def no_connection_outlives_its_test() -> AsyncIterator[None]:
    yield
    await close_connections()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server; one for all tests, each of which takes a schema of its own."""
    if servers.found("initdb") is None:
        # Where it is said that a server must be there (CI), its absence is a failure and no skip.
        assert not os.environ.get("STATESET_TEST_NO_SKIPS"), "no PostgreSQL binaries found"
        pytest.skip("no PostgreSQL binaries (initdb, postgres) on this machine")
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
def postgres_shop(postgres_url: str) -> Iterator[PostgresShop]:
    """The shop of seed 1 in a fresh schema."""
    shop = PostgresShop(postgres_url, schema=f"s{uuid.uuid4().hex[:12]}", connections=24)
    shop.migrate()
    shop.load(generate(1, "train"))
    yield shop
    shop.close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of an embedded engine with the seed policy; one for all tests."""
    log = Path(tmp_path_factory.mktemp("engine")) / "engine.log"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = running_engine(str(SEED_POLICY), log=log)
    url = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(120)
    yield url
    asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
