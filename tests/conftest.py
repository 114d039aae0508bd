"""Shared parts: the seed policy on a running engine, and scenarios."""

import asyncio
import itertools
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stateset_agents.policy import blocking_portal
from stateset_agents.policy.transport import close_connections
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.scenario import Scenario
from stateset_agents.server.engine import process as embedded
from stateset_agents.server.options import ServerOptions, VllmOptions
from stateset_agents.server.supervisor import Launch, Supervised, free_port, supervised
from stateset_agents.server.vllm import process as vllm
from stateset_agents.settings import load_settings
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.postgres import PostgresShop
from tests import servers


def of_vllm(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    served = callspec is not None and callspec.params.get("served") == "vllm"
    return served or "vllm_is_there" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, a file's tests stay together, and those of vLLM in one process, which starts one; they take longest and go
    first."""
    items.sort(key=lambda item: not of_vllm(item))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("vllm" if of_vllm(item) else str(item.path)))


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
    blocking_portal.close()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server; one for all tests, each of which takes a schema of its own."""
    if servers.binary("initdb") is None:
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


@contextmanager
def kept_running(launch: Launch, log: Path) -> Iterator[Supervised]:
    """A policy server for as long as the block runs, watched by a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = supervised(launch, log, most=1000)
    running = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(
        launch.seconds + 30
    )
    yield running
    asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of an embedded engine with the seed policy; one for all tests."""
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    with kept_running(
        embedded.launch(
            str(SEED_POLICY), ServerOptions(port=free_port(), adapters_from=(Path("/"),))
        ),
        log,
    ) as running:
        yield running.url


WEIGHTS_KEY = "a key for the weights"


@pytest.fixture(scope="session")
def vllm_is_there() -> None:
    if not vllm.installed(load_settings().vllm):
        # Where it is said that a server must be there (CI), its absence is a failure and no skip.
        assert not os.environ.get("STATESET_TEST_NO_SKIPS"), "no vLLM: run `make vllm`"
        pytest.skip("no vLLM on this machine: `make vllm` builds its environment")


@pytest.fixture(scope="session")
def vllm_server(
    vllm_is_there: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Supervised]:
    """A real vLLM with the seed policy; one for all tests."""
    environment = load_settings().vllm
    folder = tmp_path_factory.mktemp("vllm")
    launch = vllm.launch(
        str(SEED_POLICY),
        ServerOptions(port=free_port()),
        VllmOptions(python=vllm.find_python(environment), folder=folder, weights_key=WEIGHTS_KEY),
    )
    with kept_running(launch, folder / "engine.log") as running:
        yield running


@pytest.fixture(params=["embedded", "vllm"])
def served(request: pytest.FixtureRequest) -> str:
    """The base URL of each engine in turn."""
    if request.param == "embedded":
        url: str = request.getfixturevalue("engine")
        return url
    # One that runs already, while a test is written.
    if running_url := os.environ.get("STATESET_TEST_VLLM"):
        return running_url
    running: Supervised = request.getfixturevalue("vllm_server")
    return running.url
