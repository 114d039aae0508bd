"""Rules are enforced in code: an attempt is allowed, waits for consent, or changes nothing."""

import pytest

from stateset_agents.tools.executor import Executor
from stateset_agents.tools.rules import compile_condition
from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Arguments, Desk, Session, Tool
from stateset_agents.tools.toolset import ALL_TOOLS, SERVICE_TOOLS


@pytest.fixture
def shop() -> Shop:
    return generate(1, "train").clone()


def an_order(shop: Shop, status: str) -> Row:
    row = shop.first(
        "SELECT orders.*, customers.zip AS account_zip FROM orders JOIN customers ON customer_id = "
        "customers.id WHERE status = ? ORDER BY orders.id LIMIT 1",
        status,
    )
    assert row is not None
    return row


def test_the_service_set_is_frozen() -> None:
    assert len({tool.name for tool in ALL_TOOLS}) == len(ALL_TOOLS) == 47
    assert [tool.name for tool in SERVICE_TOOLS] == [
        "verify_identity", "get_order", "track_shipment", "cancel_order", "change_shipping_address",
        "check_return_eligibility", "issue_refund", "search_products", "quote_cart", "escalate_to_human",
    ]  # fmt: skip


def test_nothing_is_read_before_verification(shop: Shop) -> None:
    order = an_order(shop, "pending")
    outcome = Executor(shop, ALL_TOOLS).propose(
        Session(customer=""), "get_order", {"order_id": order["id"]}
    )
    assert (outcome.status, outcome.rule) == ("denied", "verify-first")
    assert outcome.result["help"] == "call verify_identity first"


def test_somebody_elses_order_looks_like_no_order(shop: Shop) -> None:
    order = an_order(shop, "pending")
    stranger = next(
        row["id"]
        for row in shop.all("SELECT id FROM customers")
        if row["id"] != order["customer_id"]
    )
    executor = Executor(shop, ALL_TOOLS)
    theirs = executor.propose(Session(customer=stranger), "get_order", {"order_id": order["id"]})
    nobodys = executor.propose(Session(customer=stranger), "get_order", {"order_id": "W00000"})
    assert theirs.result == nobodys.result


def test_a_write_waits_for_consent_and_happens_once(shop: Shop) -> None:
    order = an_order(shop, "pending")
    executor, session = Executor(shop, ALL_TOOLS), Session(customer=order["customer_id"])
    call = {"order_id": order["id"]}
    assert executor.propose(session, "cancel_order", call).status == "proposed"
    assert shop.changes() == ()
    denied = executor.commit(session, "cancel_order", call, confirmed=False, key="k")
    assert denied.rule == "confirm-writes"
    assert shop.changes() == ()
    first = executor.commit(session, "cancel_order", call, confirmed=True, key="k")
    changed = shop.changes()
    again = executor.commit(session, "cancel_order", call, confirmed=True, key="k")
    assert first.result == again.result
    assert shop.changes() == changed != ()
    other = executor.commit(session, "cancel_order", {"order_id": "W1"}, confirmed=True, key="k")
    assert other.result["error"] == "key_reused"


def test_a_key_stands_for_a_call_whether_defaults_are_written_out_or_not(shop: Shop) -> None:
    sku = shop.the("SELECT sku FROM stock WHERE on_hand - reserved > 2")["sku"]
    executor, session = Executor(shop, ALL_TOOLS), Session(customer="C1", seen=[sku])
    items = {"items": [{"sku": sku, "quantity": 1}]}
    total = executor.propose(session, "quote_order", items).result["total"]
    call = {**items, "total": total}
    first = executor.commit(session, "place_order", call, confirmed=True, key="k")
    again = executor.commit(session, "place_order", {**call, "code": ""}, confirmed=True, key="k")
    assert (first.status, again.result) == ("done", first.result)


def test_a_bug_in_a_tool_is_an_answer_and_no_exception(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(desk: Desk, call: Arguments) -> dict[str, object]:
        desk.shop.run("UPDATE customers SET marketing = 1 - marketing")
        raise ZeroDivisionError

    tool = Tool(name="list_orders", description="", arguments=Arguments, run=broken)
    outcome = Executor(shop, [tool]).propose(Session(customer="C1"), "list_orders", {})
    assert outcome.result["error"] == "tool_failed"
    assert shop.changes() == ()
    assert shop.first("SELECT COUNT(*) AS n FROM audit") == {"n": 1}
    assert "ZeroDivisionError" in caplog.text


def test_a_person_is_asked_where_a_rule_says_so(shop: Shop) -> None:
    order = an_order(shop, "pending")
    executor = Executor(shop, ALL_TOOLS, approvals=True)
    session, call = Session(customer="", role="staff"), {"order_id": order["id"]}
    hold = executor.propose(session, "hold_order", {**call, "reason": "new device"})
    assert hold.status == "done"
    release = executor.propose(session, "release_hold", call)
    assert (release.status, release.rule) == ("proposed", "release-by-a-person")
    alone = executor.commit(session, "release_hold", call, confirmed=True, key="k1")
    assert (alone.status, alone.rule) == ("denied", "release-by-a-person")
    released = executor.commit(
        session, "release_hold", call, confirmed=True, approved=True, key="k2"
    )
    assert released.status == "done"
    without = Executor(shop, ALL_TOOLS).propose(session, "release_hold", call)
    assert (without.status, without.result["error"]) == ("denied", "needs_approval")


def test_a_shipped_order_is_neither_cancelled_nor_readdressed(shop: Shop) -> None:
    order = an_order(shop, "shipped")
    executor, session = Executor(shop, ALL_TOOLS), Session(customer=order["customer_id"])
    cancel = executor.propose(session, "cancel_order", {"order_id": order["id"]})
    move = executor.propose(
        session,
        "change_shipping_address",
        {"order_id": order["id"], "street": "1 A", "zip": "12345"},
    )
    assert (cancel.rule, move.rule) == ("cancel-before-shipping", "address-before-shipping")
    assert shop.changes() == ()


@pytest.mark.parametrize("amount", ["0.01", "99999", "-1", "1e3", "12,50", "NaN"])
def test_a_refund_is_exactly_what_was_quoted(shop: Shop, amount: str) -> None:
    order = shop.first(
        "SELECT orders.id, customer_id FROM orders JOIN shipments ON order_id = orders.id "
        "WHERE delivered_day >= 170 ORDER BY 1 LIMIT 1"
    )
    assert order is not None
    executor, session = Executor(shop, ALL_TOOLS), Session(customer=order["customer_id"])
    arguments = {"order_id": order["id"], "line": "L1", "amount": amount}
    outcome = executor.propose(session, "issue_refund", arguments)
    assert outcome.status in ("denied", "invalid")
    assert shop.changes() == ()


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("fly_to_the_moon", {}, "no_such_tool"),
        ("get_order", {}, "bad_arguments"),
        ("get_order", {"order_id": 5}, "bad_arguments"),
        ("get_order", {"order_id": "W1", "more": 1}, "bad_arguments"),
        ("verify_identity", {"order_id": "W1", "zip": "x" * 1_000_000}, "bad_arguments"),
    ],
)
def test_bad_calls_come_back_as_errors_with_one_audit_row(
    shop: Shop, name: str, arguments: dict[str, object], code: str
) -> None:
    outcome = Executor(shop, ALL_TOOLS).propose(Session(customer=""), name, arguments)
    assert outcome.result["error"] == code
    assert shop.first("SELECT COUNT(*) AS n FROM audit") == {"n": 1}
    assert shop.changes() == ()


def test_conditions_are_a_small_language_of_their_own() -> None:
    facts = {"order": {"status": "delivered", "days": 12}}
    assert compile_condition('order.status == "delivered" and order.days <= 30')(facts)
    assert not compile_condition("not order.days > 3")(facts)
    with pytest.raises(ValueError, match="Expected comparisons"):
        compile_condition("__import__('os').system('true')")
