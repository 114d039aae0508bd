"""The shop: the same seed gives the same bytes, and nonsense is refused whatever the tools do."""

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateset_agents.scenario import Change
from stateset_agents.tools.executor import Executor, audit_holds
from stateset_agents.tools.shop import Shop, generate
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS


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
        "INSERT INTO payments SELECT 'X', id, 'refund', NULL, 99999999 FROM orders LIMIT 1",
        "UPDATE stock SET on_hand = -1",
        "UPDATE stock SET reserved = on_hand + 1",
        "UPDATE lines SET refunded = paid + 1",
        "UPDATE products SET price = cost - 1",
        "UPDATE orders SET status = 'lost'",
    ],
)
def test_the_database_itself_refuses_nonsense(shop: Shop, sql: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        shop.run(sql)


def test_the_audit_log_cannot_be_rewritten(shop: Shop) -> None:
    Executor(shop, ALL_TOOLS).propose(Session(customer=""), "list_orders", {})
    assert audit_holds(shop)
    for sql in ("UPDATE audit SET outcome = 'done'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            shop.run(sql)


NAMES = st.sampled_from([tool.name for tool in ALL_TOOLS])
VALUES = st.one_of(
    st.sampled_from(
        ["L1", "L2", "P10", "P11", "12.50", "45.5", "SPRING10", "12345", "1 New Road", ""]
    ),
    st.text(max_size=8),
    st.integers(-5, 5),
    st.floats(),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_sequence_of_calls_breaks_an_invariant(data: st.DataObject) -> None:
    shop = generate(2, "train").clone()
    orders = shop.all("SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id ORDER BY 1")  # fmt: skip
    executor, session = Executor(shop, ALL_TOOLS), Session(customer="")
    before = shop.one("SELECT COUNT(*) AS n FROM audit")
    attempts = data.draw(st.integers(1, 12))
    proposed = 0
    for number in range(attempts):
        name = data.draw(NAMES)
        order = data.draw(st.sampled_from(orders))
        arguments = {
            field: order["id"] if field == "order_id" else order["zip"] if field == "zip" else data.draw(VALUES)
            for field in executor.tools[name].arguments.model_fields
        }  # fmt: skip
        outcome = executor.propose(session, name, arguments)
        if outcome.status == "proposed":
            sure = data.draw(st.booleans())
            outcome = executor.commit(session, name, arguments, confirmed=sure, key=str(number))
            assert sure or outcome.rule == "confirm-writes"
            proposed += 1
        session = outcome.session
    over = shop.one(
        "SELECT COUNT(*) AS n FROM orders WHERE (SELECT COALESCE(SUM(amount), 0) FROM payments WHERE "
        "order_id = orders.id AND kind = 'refund') > (SELECT SUM(amount) FROM payments WHERE order_id = "
        "orders.id AND kind = 'capture')"
    )
    assert over == {"n": 0}
    assert audit_holds(shop)
    after = shop.one("SELECT COUNT(*) AS n FROM audit")
    assert before is not None
    assert after is not None
    assert after["n"] - before["n"] == attempts
    shop.close()
