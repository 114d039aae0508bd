"""Tools about returns and refunds. Amounts come from the quote, never from the model's arithmetic."""

from typing import Any

from stateset_agents.tools.commerce.checkout import Priced, PricedLine, store
from stateset_agents.tools.commerce.inventory import find_product, give_back
from stateset_agents.tools.facts import order_facts
from stateset_agents.tools.rules import facts_of
from stateset_agents.tools.shop.calendar import NOT_DELIVERED
from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.money import cents, show
from stateset_agents.tools.tool import Arguments, Desk, Money, Text, Tool, ToolError, Word


class Line(Arguments):
    order_id: Word
    line: Word


class Refund(Line):
    amount: Money


class Return(Line):
    reason: Text


class Exchange(Line):
    sku: Word


class Picture(Arguments):
    photo: Word


class Photo(Line):
    photo: Word


def refundable(desk: Desk, call: Line) -> int:
    """Cents paid for a line and not yet refunded. Raises ToolError for an unknown line."""
    line = desk.shop.first(
        "SELECT paid - refunded AS cents FROM lines WHERE order_id = ? AND line = ?",
        call.order_id, call.line,
    )  # fmt: skip
    if line is None:
        raise ToolError("no_such_line", "use a line of get_order")
    return int(line["cents"])


def check_return_eligibility(desk: Desk, call: Line) -> dict[str, Any]:
    """Whether the rules in force would allow a refund of the line, as far as the order decides."""
    amount = refundable(desk, call)
    order = order_facts(desk.shop, call.order_id)
    if order["days"] == NOT_DELIVERED:
        return {"eligible": False, "reason": "not delivered yet"}
    for rule in desk.rules:
        read = facts_of(rule.unless)
        if "issue_refund" not in rule.applies_to or {t for t, _ in read} - {"order", "limit"}:
            continue
        if not rule.allows({"order": order}):
            late = ("order", "days") in read
            reason = f"delivered {order['days']} days ago" if late else rule.code.replace("_", " ")
            return {"eligible": False, "reason": reason}
    if amount == 0:
        return {"eligible": False, "reason": "already refunded"}
    return {"eligible": True, "amount": show(amount)}


def issue_refund(desk: Desk, call: Refund) -> dict[str, Any]:
    give_back(desk, call.order_id, call.line, cents(call.amount))
    return {"refunded": call.amount}


def create_return(desk: Desk, call: Return) -> dict[str, Any]:
    label = _open_return(desk, call, call.reason, "refund")
    return {"return": label}


def _open_return(desk: Desk, call: Line, reason: str, resolution: str) -> str:
    refundable(desk, call)
    label = desk.shop.next_id("RMA")
    desk.shop.insert(
        "returns", id=label, order_id=call.order_id, line=call.line, reason=reason, resolution=resolution
    )  # fmt: skip
    desk.shop.run(
        "UPDATE lines SET returned = returned + 1 WHERE order_id = ? AND line = ?",
        call.order_id, call.line,
    )  # fmt: skip
    desk.shop.emit("return.label", id=label)
    return label


def exchange(desk: Desk, call: Exchange) -> dict[str, Any]:
    """A line comes back and another product of its family goes out, paid with what the line is worth."""
    shop, worth = desk.shop, refundable(desk, call)
    line = shop.the(
        "SELECT sku, quantity FROM lines WHERE order_id = ? AND line = ?", call.order_id, call.line
    )
    old, new = find_product(shop, line["sku"]), find_product(shop, call.sku)
    if new["family"] != old["family"]:
        raise ToolError("no_exchange", "use a sku of find_substitutes")
    if line["quantity"] != 1:
        raise ToolError("one_unit_only", "return the line and order again")
    if worth == 0:
        raise ToolError("already_refunded", "the line is worth nothing any more")
    if new["price"] > worth:
        raise ToolError("dearer", f"choose one up to {show(worth)}")
    _open_return(desk, call, "exchange", "exchange")
    shop.insert(
        "payments", id=shop.next_id("R"), order_id=call.order_id, kind="credit", line=call.line,
        amount=new["price"], day=shop.today,
    )  # fmt: skip
    shop.run(
        "UPDATE lines SET refunded = refunded + ? WHERE order_id = ? AND line = ?",
        new["price"], call.order_id, call.line,
    )  # fmt: skip
    if worth > new["price"]:
        give_back(desk, call.order_id, call.line, worth - new["price"])
    sent = PricedLine(sku=call.sku, quantity=1, unit_price=new["price"], discount=0)
    order = store(desk, Priced(lines=(sent,), code="", discount=0), shipping=0)
    return {"order": order, "refunded": show(worth - new["price"])}


def inspect_photo(desk: Desk, call: Picture) -> dict[str, Any]:
    """What a photo of the customer's shows, and whether a claim has used it."""
    photo = _photo(desk, call.photo)
    item = desk.shop.the("SELECT item FROM products WHERE sku = ?", photo["shows"])["item"]
    return {"shows": item, "used": _used(desk, photo)}


def _photo(desk: Desk, id: str) -> Row:
    photo = desk.shop.first(
        "SELECT digest, shows FROM media WHERE id = ? AND customer_id = ?",
        id, desk.session["customer"],
    )  # fmt: skip
    if photo is None:
        raise ToolError("no_such_photo", "ask the customer to upload one")
    return photo


def _used(desk: Desk, photo: Row) -> bool:
    used = desk.shop.first(
        "SELECT media_id FROM claim_photos JOIN media ON media.id = media_id WHERE digest = ?",
        photo["digest"],
    )
    return used is not None


def attach_claim_photo(desk: Desk, call: Photo) -> dict[str, Any]:
    """Attach a photo of the customer's to a line. The same picture serves one claim only."""
    refundable(desk, call)
    photo = _photo(desk, call.photo)
    if _used(desk, photo):
        raise ToolError("photo_used", "escalate_to_human")
    sku = desk.shop.the(
        "SELECT sku FROM lines WHERE order_id = ? AND line = ?", call.order_id, call.line
    )["sku"]
    if photo["shows"] != sku:
        raise ToolError("other_product", "ask for a photo of the item")
    desk.shop.insert("claim_photos", media_id=call.photo, order_id=call.order_id, line=call.line)
    return {"attached": call.photo}


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
        quote=refundable,
    ),
    Tool(
        name="create_return",
        description="Open a return for a line and make its label.",
        arguments=Return,
        run=create_return,
        confirm=True,
    ),
    Tool(
        name="exchange",
        description="Take a line back and send a product of find_substitutes instead.",
        arguments=Exchange,
        run=exchange,
        confirm=True,
    ),
    Tool(
        name="inspect_photo",
        description="What a photo that the customer uploaded shows.",
        arguments=Picture,
        run=inspect_photo,
    ),
    Tool(
        name="attach_claim_photo",
        description="Attach a photo that the customer uploaded to a claim about a line.",
        arguments=Photo,
        run=attach_claim_photo,
        confirm=True,
    ),
)
