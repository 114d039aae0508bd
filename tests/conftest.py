"""Shared parts: the seed policy on a running engine, and scenarios."""

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stateset_agents.jobs import SEED_POLICY
from stateset_agents.policy import close_connections
from stateset_agents.scenario import Scenario
from stateset_agents.server.engine.process import running_engine
from stateset_agents.tools.scenarios import scenarios


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
