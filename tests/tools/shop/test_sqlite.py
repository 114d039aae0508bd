"""The shop: the same seed gives the same bytes, and nonsense is refused whatever the tools do."""

import pytest

from stateset_agents.scenario import Change
from stateset_agents.tools.executor import Executor, audit_holds
from stateset_agents.tools.shop.database import Impossible
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS
from stateset_agents.tools.wording import Split
from tests.invariants import broken


@pytest.fixture
def shop() -> Shop:
    return generate(1, "train").clone()


def test_the_same_seed_gives_the_same_bytes() -> None:
    first = generate(3, "train").connection.serialize()
    generate.cache_clear()
    assert generate(3, "train").connection.serialize() == first
    assert generate(4, "train").connection.serialize() != first


def test_a_clone_is_independent_and_lists_its_changes(shop: Shop) -> None:
    order = shop.all("SELECT id FROM orders ORDER BY id")[0]["id"]
    other = generate(1, "train").clone()
    shop.run("UPDATE orders SET street = '1 New Road' WHERE id = ?", order)
    assert shop.changes() == (
        Change(table="orders", key=order, column="street", value="1 New Road"),
    )
    assert other.changes() == ()


def test_a_change_that_is_undone_is_no_change(shop: Shop) -> None:
    order = shop.all("SELECT id, street FROM orders ORDER BY id")[0]
    shop.run("UPDATE orders SET street = 'x' WHERE id = ?", order["id"])
    shop.run("UPDATE orders SET street = ? WHERE id = ?", order["street"], order["id"])
    assert shop.changes() == ()


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO payments SELECT 'X', id, 'refund', NULL, 99999999, 200 FROM orders LIMIT 1",
        "INSERT INTO payments SELECT 'X', id, 'credit', NULL, 99999999, 200 FROM orders LIMIT 1",
        "UPDATE stock SET on_hand = -1",
        "UPDATE stock SET reserved = on_hand + 1",
        "UPDATE lines SET refunded = paid + 1",
        "UPDATE products SET price = floor - 1",
        "UPDATE lines SET paid = paid + 1",
        "UPDATE lines SET returned = quantity, cancelled = 1",
        "UPDATE promotions SET uses = max_uses + 1",
        "UPDATE orders SET status = 'lost'",
    ],
)
def test_the_database_itself_refuses_nonsense(shop: Shop, sql: str) -> None:
    with pytest.raises(Impossible):
        shop.run(sql)


def test_the_audit_log_cannot_be_rewritten(shop: Shop) -> None:
    Executor(shop, ALL_TOOLS).propose(Session(customer=""), "list_orders", {})
    assert audit_holds(shop)
    for sql in ("UPDATE audit SET outcome = 'done'", "DELETE FROM audit"):
        with pytest.raises(Impossible, match="append-only"):
            shop.run(sql)


@pytest.mark.parametrize("split", ["train", "development", "held_out"])
def test_a_generated_shop_keeps_every_invariant(split: Split) -> None:
    for seed in range(20):
        assert broken(generate(seed, split)) == []


@pytest.mark.parametrize(
    ("sql", "invariant"),
    [
        ("UPDATE stock SET on_hand = on_hand + 1", "the ledger of stock adds up to the counts"),
        ("UPDATE orders SET shipping = 7", "totals conserve to the cent"),
        ("UPDATE orders SET status = 'cancelled'", "a cancelled order holds and owes nothing"),
        ("DELETE FROM returns", "returns are counted on their lines"),
    ],
)
def test_an_invariant_that_is_broken_is_found(shop: Shop, sql: str, invariant: str) -> None:
    """The checks of the fuzzer are themselves checked: each finds the damage it is there for."""
    line = shop.the("SELECT order_id, line FROM lines")
    shop.insert("returns", id="RMA1", order_id=line["order_id"], line=line["line"], reason="x")
    shop.run(
        "UPDATE lines SET returned = 1 WHERE order_id = ? AND line = ?",
        line["order_id"],
        line["line"],
    )
    assert broken(shop) == []
    shop.run(sql)
    assert invariant in broken(shop)


def test_the_clock_moves_only_when_told_to(shop: Shop) -> None:
    today = shop.today
    shop.advance(days=3)
    assert shop.today == today + 3


def test_what_leaves_the_shop_waits_in_the_outbox(shop: Shop) -> None:
    order = shop.the("SELECT id, customer_id FROM orders WHERE status = 'pending'")
    executor, session = Executor(shop, ALL_TOOLS), Session(customer=order["customer_id"])
    executor.commit(session, "cancel_order", {"order_id": order["id"]}, confirmed=True, key="k")
    (left,) = shop.all("SELECT topic, payload FROM outbox")
    assert left["topic"] == "order.cancelled"
    assert order["id"] in left["payload"]
