"""Every backend answers the same acts alike, as far as it can do them, and says what it cannot."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from stateset_agents.tools.backend import Backend, ShopBackend
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.mcp_client import mcp_backend
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.postgres import PostgresShop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS

NOBODY = Session(customer="")
PENDING = generate(1, "train").the(
    "SELECT orders.id, customers.zip, customer_id FROM orders JOIN customers ON customer_id = customers.id "
    "WHERE status = 'pending' AND customer_id IN (SELECT customer_id FROM orders WHERE status = 'shipped') "
    "ORDER BY orders.id"
)
SHIPPED = generate(1, "train").the(
    "SELECT id FROM orders WHERE status = 'shipped' AND customer_id = ? ORDER BY id",
    PENDING["customer_id"],
)


Reach = Callable[[], AbstractAsyncContextManager[Backend]]


@pytest.fixture(params=["embedded", "postgres", "mcp"])
def reach(request: pytest.FixtureRequest) -> Reach:
    """Opens a backend over the shop of seed 1, in the task that asks: MCP wants to end where it began."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        if request.param == "embedded":
            yield ShopBackend(Executor(generate(1, "train").clone(), ALL_TOOLS))
        elif request.param == "postgres":
            shop: PostgresShop = request.getfixturevalue("postgres_shop")
            yield ShopBackend(Executor(shop, ALL_TOOLS), threads=True)
        else:
            command = [sys.executable, "-m", "stateset_agents", "mcp"]
            async with mcp_backend(
                {"transport": "stdio", "command": command[0], "args": command[1:]}
            ) as served:
                yield served

    return opened


async def test_the_tools_are_the_shops(reach: Reach) -> None:
    async with reach() as backend:
        assert set(backend.offers) == {tool.name for tool in ALL_TOOLS}
        for tool in ALL_TOOLS:
            offer = backend.offers[tool.name]
            assert offer.writes == tool.confirm
            assert offer.schema["function"]["name"] == tool.name
            assert set(offer.schema["function"]["parameters"].get("properties", {})) == set(
                tool.arguments.model_fields
            )


async def test_a_read_runs_at_once_and_what_is_not_allowed_says_why(reach: Reach) -> None:
    async with reach() as backend:
        result = await backend.propose(NOBODY, "search_products", {"query": "oak"})
        assert result.status == "done"
        assert "found" in result.result
        for name, arguments, code in (
            ("get_order", {"order_id": PENDING["id"]}, "not_verified"),
            ("get_order", {"order_id": 5}, "bad_arguments"),
            ("get_risk_assessment", {"order_id": PENDING["id"]}, "not_allowed"),
            ("fly", {}, "no_such_tool"),
        ):
            outcome = await backend.propose(NOBODY, name, arguments)
            assert outcome.status in ("denied", "invalid")
            assert outcome.result["error"] == code


async def test_a_write_waits_is_made_once_for_its_key_and_stays_made(reach: Reach) -> None:
    async with reach() as backend:
        verified = await backend.propose(
            NOBODY, "verify_identity", {"order_id": PENDING["id"], "zip": PENDING["zip"]}
        )
        session, call = verified.session, {"order_id": PENDING["id"]}
        assert (await backend.propose(session, "cancel_order", call)).status == "proposed"
        assert await status(backend, session) == "pending"
        declined = await backend.decline(session, "cancel_order", call)
        assert (declined.status, await status(backend, session)) == ("declined", "pending")
        refused = await backend.commit(session, "cancel_order", call, confirmed=False, key="k0")
        assert (refused.status in ("denied", "declined"), await status(backend, session)) == (
            True,
            "pending",
        )
        first = await backend.commit(session, "cancel_order", call, confirmed=True, key="k1")
        again = await backend.commit(session, "cancel_order", call, confirmed=True, key="k1")
        assert first.status == "done"
        assert first.result == again.result
        assert await status(backend, session) == "cancelled"
        other = await backend.commit(
            session, "cancel_order", {"order_id": SHIPPED["id"]}, confirmed=True, key="k2"
        )
        assert other.result["error"] == "too_late"


async def status(backend: Backend, session: Session) -> Any:
    return (await backend.propose(session, "get_order", {"order_id": PENDING["id"]})).result[
        "status"
    ]


async def test_what_a_backend_cannot_do_it_declares(reach: Reach) -> None:
    async with reach() as backend:
        if isinstance(backend, ShopBackend):
            wanted = {"rollback", "changes", "audit"} | (set() if backend.threads else {"clone"})
            assert backend.can == wanted
            assert hasattr(backend.executor.shop, "clone") == ("clone" in backend.can)
        else:
            assert backend.can == frozenset()
