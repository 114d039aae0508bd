"""Tools about the customer: who is writing, what is known of them, handing them to a person."""

from typing import Any

from stateset_agents.tools.shop import Shop
from stateset_agents.tools.tool import Arguments, Session, Tool, ToolError


class Verify(Arguments):
    order_id: str
    zip: str


class Nothing(Arguments):
    pass


class Reason(Arguments):
    reason: str


def verify_identity(shop: Shop, session: Session, call: Verify) -> dict[str, Any]:
    found = shop.one(
        "SELECT customers.id, name FROM customers JOIN orders ON customer_id = customers.id "
        "WHERE orders.id = ? AND customers.zip = ?",
        call.order_id, call.zip,
    )  # fmt: skip
    if found is None:
        raise ToolError("no_match", "ask for the order number and zip again")
    session["customer"] = found["id"]
    return {"verified": found["name"]}


def get_customer(shop: Shop, session: Session, call: Nothing) -> dict[str, Any]:
    found = shop.one("SELECT name, email, tier FROM customers WHERE id = ?", session["customer"])
    assert found is not None
    return found


def list_orders(shop: Shop, session: Session, call: Nothing) -> dict[str, Any]:
    rows = shop.all(
        "SELECT id, status FROM orders WHERE customer_id = ? ORDER BY id", session["customer"]
    )
    return {"orders": {row["id"]: row["status"] for row in rows}}


def escalate_to_human(shop: Shop, session: Session, call: Reason) -> dict[str, Any]:
    ticket = shop.next_id("T")
    shop.run(
        "INSERT INTO tickets VALUES(?, ?, ?)",
        ticket,
        session["customer"] or None,
        call.reason[:500],
    )
    return {"ticket": ticket}


TOOLS = (
    Tool(
        name="verify_identity",
        description="Check who is writing by an order number and the zip code of the account.",
        arguments=Verify,
        run=verify_identity,
    ),
    Tool(
        name="get_customer",
        description="The verified customer's name, e-mail and tier.",
        arguments=Nothing,
        run=get_customer,
    ),
    Tool(
        name="list_orders",
        description="The verified customer's orders with their status.",
        arguments=Nothing,
        run=list_orders,
    ),
    Tool(
        name="escalate_to_human",
        description="Hand the conversation to a person; ends it.",
        arguments=Reason,
        run=escalate_to_human,
    ),
)
