"""Tools about returns and refunds. Amounts come from the quote, never from the model's arithmetic."""

from typing import Any

from stateset_agents.tools.money import cents, show
from stateset_agents.tools.shop import TODAY, Shop
from stateset_agents.tools.tool import Arguments, Session, Tool, ToolError

WINDOW_DAYS = 30


class Line(Arguments):
    order_id: str
    line: str


class Refund(Arguments):
    order_id: str
    line: str
    amount: str


class Return(Arguments):
    order_id: str
    line: str
    reason: str


def refundable(shop: Shop, order_id: str, line: str) -> int:
    """Cents paid for a line and not yet refunded. Raises ToolError for an unknown line."""
    found = shop.one(
        "SELECT paid - refunded AS cents FROM lines WHERE order_id = ? AND line = ?", order_id, line
    )
    if found is None:
        raise ToolError("no_such_line", "use a line of get_order")
    return int(found["cents"])


def delivered_days_ago(shop: Shop, order_id: str) -> int | None:
    """Days since delivery, or None while it is on its way."""
    found = shop.one("SELECT delivered_day FROM shipments WHERE order_id = ?", order_id)
    if found is None or found["delivered_day"] is None:
        return None
    return TODAY - int(found["delivered_day"])


def check_return_eligibility(shop: Shop, session: Session, call: Line) -> dict[str, Any]:
    amount = refundable(shop, call.order_id, call.line)
    days = delivered_days_ago(shop, call.order_id)
    if days is None:
        return {"eligible": False, "reason": "not delivered yet"}
    if days > WINDOW_DAYS:
        return {"eligible": False, "reason": f"delivered {days} days ago"}
    if amount == 0:
        return {"eligible": False, "reason": "already refunded"}
    return {"eligible": True, "amount": show(amount)}


def issue_refund(shop: Shop, session: Session, call: Refund) -> dict[str, Any]:
    amount = cents(call.amount)
    payment = shop.next_id("R")
    shop.run(
        "INSERT INTO payments VALUES(?, ?, 'refund', ?, ?)",
        payment,
        call.order_id,
        call.line,
        amount,
    )
    shop.run(
        "UPDATE lines SET refunded = refunded + ? WHERE order_id = ? AND line = ?",
        amount, call.order_id, call.line,
    )  # fmt: skip
    return {"refunded": call.amount}


def create_return(shop: Shop, session: Session, call: Return) -> dict[str, Any]:
    label = shop.next_id("RMA")
    shop.run(
        "INSERT INTO returns VALUES(?, ?, ?, ?)", label, call.order_id, call.line, call.reason[:200]
    )
    shop.run(
        "UPDATE lines SET returned = returned + 1 WHERE order_id = ? AND line = ?",
        call.order_id, call.line,
    )  # fmt: skip
    return {"return": label}


TOOLS = (
    Tool(
        name="check_return_eligibility",
        description="Whether a line can be refunded, and the amount.",
        arguments=Line,
        run=check_return_eligibility,
    ),
    Tool(
        name="issue_refund",
        description="Refund a line with the amount of its eligibility check.",
        arguments=Refund,
        run=issue_refund,
        confirm=True,
    ),
    Tool(
        name="create_return",
        description="Open a return for a line and make its label.",
        arguments=Return,
        run=create_return,
        confirm=True,
    ),
)
