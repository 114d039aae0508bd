"""A shop in PostgreSQL: many at once, and one effect each."""

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.tools.executor import Executor, Outcome, audit_holds
from stateset_agents.tools.mcp_client import mcp_backend
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.shop.postgres import PostgresShop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS
from tests.invariants import broken


def together(count: int, work: Callable[[int], Outcome]) -> list[Outcome]:
    """`count` threads that begin at the same moment."""
    gate, outcomes = threading.Barrier(count), list[Outcome]()

    def act(number: int) -> None:
        gate.wait()
        outcomes.append(work(number))

    threads = [threading.Thread(target=act, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def returnable(shop: Any) -> dict[str, Any]:
    row: dict[str, Any] = shop.the(
        "SELECT lines.order_id, line, paid, customer_id FROM lines JOIN orders ON orders.id = lines.order_id "
        "JOIN shipments ON shipments.order_id = orders.id WHERE delivered_day >= 180 ORDER BY 1, 2"
    )
    return row


@pytest.mark.parametrize("keys", ["one key", "a key each"])
def test_fifty_refunds_at_once_are_one_refund(postgres_shop: PostgresShop, keys: str) -> None:
    line = returnable(postgres_shop)
    executor, session = Executor(postgres_shop, ALL_TOOLS), Session(customer=line["customer_id"])
    call = {"order_id": line["order_id"], "line": line["line"], "amount": show(line["paid"])}

    def refund(number: int) -> Outcome:
        key = "k" if keys == "one key" else f"k{number}"
        return executor.commit(session, "issue_refund", call, confirmed=True, key=key)

    outcomes = together(50, refund)
    paid_out = postgres_shop.all("SELECT amount FROM payments WHERE kind = 'refund'")
    assert paid_out == [{"amount": line["paid"]}]
    done = [outcome for outcome in outcomes if outcome.status == "done"]
    assert len(done) == (50 if keys == "one key" else 1)
    assert len({str(outcome.result) for outcome in done}) == 1
    assert broken(postgres_shop) == []
    assert audit_holds(postgres_shop)
    assert postgres_shop.the("SELECT COUNT(*) AS n FROM audit") == {"n": 50}


def test_two_buyers_of_the_last_unit_make_one_order(postgres_shop: PostgresShop) -> None:
    shop = postgres_shop
    sku = shop.the("SELECT sku FROM stock GROUP BY sku HAVING SUM(on_hand - reserved) > 3 ORDER BY sku")["sku"]  # fmt: skip
    for row in shop.all(
        "SELECT warehouse, on_hand - reserved AS free FROM stock WHERE sku = ?", sku
    ):
        shop.run("UPDATE stock SET on_hand = reserved WHERE sku = ? AND warehouse = ?", sku, row["warehouse"])  # fmt: skip
        shop.insert("movements", sku=sku, warehouse=row["warehouse"], on_hand=-row["free"], reserved=0, why="lost")  # fmt: skip
    shop.run("UPDATE stock SET on_hand = on_hand + 1 WHERE sku = ? AND warehouse = 'WC'", sku)
    shop.insert("movements", sku=sku, warehouse="WC", on_hand=1, reserved=0, why="found")
    executor = Executor(shop, ALL_TOOLS)
    items = [{"sku": sku, "quantity": 1}]
    buyers = [row["id"] for row in shop.all("SELECT id FROM customers ORDER BY id")]
    sessions = [Session(customer=buyer, seen=[sku]) for buyer in buyers]
    total = executor.propose(sessions[0], "quote_order", {"items": items}).result["total"]

    def buy(number: int) -> Outcome:
        call = {"items": items, "total": total}
        return executor.commit(
            sessions[number], "place_order", call, confirmed=True, key=f"k{number}"
        )

    outcomes = together(len(buyers), buy)
    assert sorted(outcome.status for outcome in outcomes) == [
        "done",
        *["invalid"] * (len(buyers) - 1),
    ]
    assert {o.result["error"] for o in outcomes if o.status == "invalid"} == {"out_of_stock"}
    assert len(shop.all("SELECT id FROM orders WHERE id LIKE 'N%'")) == 1
    assert broken(shop) == []


def test_the_same_acts_change_the_same_cells_as_on_sqlite(postgres_shop: PostgresShop) -> None:
    shops = (postgres_shop, generate(1, "train").clone())
    changed = []
    for shop in shops:
        line = returnable(shop)
        executor, session = Executor(shop, ALL_TOOLS), Session(customer=line["customer_id"])
        call = {"order_id": line["order_id"], "line": line["line"], "amount": show(line["paid"])}
        outcome = executor.commit(session, "issue_refund", call, confirmed=True, key="k")
        assert outcome.status == "done"
        address = {"street": "1 New Road", "zip": "12345"}
        executor.commit(session, "update_address", address, confirmed=True, key="k2")
        changed.append(shop.changes())
    assert changed[0] == changed[1]
    assert len(changed[0]) > 3


async def test_reads_from_many_threads_leave_one_audit_chain(postgres_shop: PostgresShop) -> None:
    executor = Executor(postgres_shop, ALL_TOOLS)
    every = itertools.repeat((Session(customer=""), "search_products", {"query": "oak"}), 40)
    outcomes = await asyncio.gather(*(asyncio.to_thread(executor.propose, *call) for call in every))
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert audit_holds(postgres_shop)


def test_migrating_twice_changes_nothing(postgres_shop: PostgresShop) -> None:
    postgres_shop.migrate()
    assert postgres_shop.all("SELECT version FROM migrations") == [{"version": "0001"}]


def test_a_full_schema_is_not_filled_again(postgres_shop: PostgresShop) -> None:
    with pytest.raises(BadInput, match="found a shop"):
        postgres_shop.load(generate(2, "train"))


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(
        BadInput, match=r"Expected PostgreSQL at postgresql://…@127\.0\.0\.1:9/x"
    ) as error:
        PostgresShop("postgresql://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(error.value)


def test_the_command_line_makes_a_shop_and_serves_its_tools(postgres_url: str) -> None:
    command = [sys.executable, "-m", "stateset_agents"]
    where = ["--database", postgres_url, "--schema", "made"]
    create = [*command, "shop", "create", *where, "--seed", "3"]
    done = subprocess.run(create, capture_output=True, text=True, check=True)
    assert "12 customers, 16 products, 30 orders" in done.stdout
    again = subprocess.run(create, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "found a shop" in again.stderr
    empty = [*command, "mcp", "--database", postgres_url, "--schema", "nothing"]
    refused = subprocess.run(empty, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "shop create" in refused.stderr
    asyncio.run(asks_over_mcp([*command[1:], "mcp", *where]))


async def asks_over_mcp(arguments: list[str]) -> None:
    connection: Any = {"transport": "stdio", "command": sys.executable, "args": arguments}
    async with mcp_backend(connection) as backend:
        outcomes = await backend.propose(Session(customer=""), "policy_lookup", {"topic": "refund"})
        assert "refund-limit" in outcomes.result
