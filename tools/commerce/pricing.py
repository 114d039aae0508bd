"""Tools about prices: what something costs, codes, matches, and the merchant's own changes."""

from typing import Annotated, Any

from pydantic import Field

from stateset_agents.tools.commerce.checkout import redeem, usable
from stateset_agents.tools.commerce.inventory import find_product, give_back
from stateset_agents.tools.shop.money import cents, percent_off, show
from stateset_agents.tools.tool import Arguments, Desk, Money, Text, Tool, ToolError, Word


class Sku(Arguments):
    sku: Word


class Quote(Arguments):
    sku: Word
    code: Word = ""


class Code(Arguments):
    code: Word


class OrderCode(Arguments):
    order_id: Word
    code: Word


class Match(Arguments):
    order_id: Word
    line: Word
    price: Money


class NewPrice(Arguments):
    sku: Word
    price: Money
    reason: Text


class NewPromotion(Arguments):
    code: Word
    percent: Annotated[int, Field(ge=1, le=90)]
    days: Annotated[int, Field(ge=1, le=90)]


def promotion(desk: Desk, code: str) -> int | None:
    """Percent off, or None where the code is unknown or over."""
    row = desk.shop.first(
        "SELECT percent FROM promotions WHERE code = ? AND from_day <= ? AND until_day >= ?",
        code.upper(), desk.shop.today, desk.shop.today,
    )  # fmt: skip
    return int(row["percent"]) if row else None


def get_price(desk: Desk, call: Sku) -> dict[str, Any]:
    return {"price": show(find_product(desk.shop, call.sku)["price"])}


def quote_cart(desk: Desk, call: Quote) -> dict[str, Any]:
    product = find_product(desk.shop, call.sku)
    price = product["price"]
    answer: dict[str, Any] = {"price": show(price)}
    if call.code:
        percent = promotion(desk, call.code)
        answer["code"] = "valid" if percent else "expired"
        price = percent_off(price, percent) if percent else price
    return {**answer, "total": show(price), "in_stock": product["free"]}


def validate_promotion(desk: Desk, call: Code) -> dict[str, Any]:
    percent = promotion(desk, call.code)
    return {"valid": True, "percent": percent} if percent else {"valid": False}


def apply_promotion(desk: Desk, call: OrderCode) -> dict[str, Any]:
    """Take a code off an order that has not shipped: the difference goes back, once for each code."""
    shop, code = desk.shop, call.code.upper()
    lines = shop.all(
        "SELECT line, paid - refunded AS cents, discount FROM lines WHERE order_id = ? ORDER BY line",
        call.order_id,
    )
    total = sum(int(row["cents"]) for row in lines)
    percent = usable(desk, code, total)
    if percent is None:
        raise ToolError("code_not_valid", "tell the customer")
    if any(row["discount"] for row in lines) or shop.first(
        "SELECT code FROM redemptions WHERE order_id = ?", call.order_id
    ):
        raise ToolError("one_code_each", "an order takes one code")
    back = 0
    for row in lines:
        off = int(row["cents"]) - percent_off(int(row["cents"]), percent)
        if off:
            give_back(desk, call.order_id, row["line"], off)
            back += off
    redeem(desk, code, call.order_id, back)
    return {"code": code, "refunded": show(back)}


def _match(desk: Desk, call: Match) -> int:
    """What a match gives back: what was paid for the line beyond the lower price."""
    line = desk.shop.first(
        "SELECT paid - refunded AS cents, quantity FROM lines WHERE order_id = ? AND line = ?",
        call.order_id, call.line,
    )  # fmt: skip
    if line is None:
        raise ToolError("no_such_line", "use a line of get_order")
    return max(0, int(line["cents"]) - cents(call.price) * int(line["quantity"]))


def price_match(desk: Desk, call: Match) -> dict[str, Any]:
    back = _match(desk, call)
    if back == 0:
        raise ToolError("not_lower", "the customer paid no more than that")
    line = desk.shop.the(
        "SELECT cost, quantity FROM lines JOIN products USING(sku) WHERE order_id = ? AND line = ?",
        call.order_id, call.line,
    )  # fmt: skip
    if cents(call.price) < int(line["cost"]):
        raise ToolError("below_cost", "escalate_to_human")
    give_back(desk, call.order_id, call.line, back)
    return {"matched": call.price, "refunded": show(back)}


def propose_price_change(desk: Desk, call: NewPrice) -> dict[str, Any]:
    shop, product = desk.shop, find_product(desk.shop, call.sku)
    new = cents(call.price)
    if new == product["price"]:
        raise ToolError("same_price", "propose another one")
    floor = shop.the("SELECT floor FROM products WHERE sku = ?", call.sku)["floor"]
    change = shop.next_id("PC")
    shop.insert(
        "price_changes", id=change, sku=call.sku, before=product["price"], after=new, reason=call.reason,
        day=shop.today,
    )  # fmt: skip
    # Under the floor the rules have asked a person; the database wants to know by which change.
    shop.run(
        "UPDATE products SET price = ?, waived_by = ? WHERE sku = ?",
        new, change if new < int(floor) else None, call.sku,
    )  # fmt: skip
    shop.emit("price.changed", sku=call.sku, price=new)
    return {"sku": call.sku, "price": call.price}


def create_promotion(desk: Desk, call: NewPromotion) -> dict[str, Any]:
    shop, code = desk.shop, call.code.upper()
    if not (code.isascii() and code.isalnum() and 4 <= len(code) <= 20):
        raise ToolError("bad_code", "4 to 20 letters and digits")
    shop.insert(
        "promotions", code=code, percent=call.percent, from_day=shop.today,
        until_day=shop.today + call.days,
    )  # fmt: skip
    return {"code": code, "percent": call.percent}


TOOLS = (
    Tool(name="get_price", description="Price of a product.", arguments=Sku, run=get_price),
    Tool(
        name="quote_cart",
        description="Price, total after a promotion code, and stock of a product.",
        arguments=Quote,
        run=quote_cart,
    ),
    Tool(
        name="validate_promotion",
        description="Whether a promotion code is valid today.",
        arguments=Code,
        run=validate_promotion,
    ),
    Tool(
        name="apply_promotion",
        description="Take a promotion code off an order that has not shipped.",
        arguments=OrderCode,
        run=apply_promotion,
        confirm=True,
    ),
    Tool(
        name="price_match",
        description="Match a lower price elsewhere: the difference for a line goes back.",
        arguments=Match,
        run=price_match,
        confirm=True,
        quote=_match,
    ),
    Tool(
        name="propose_price_change",
        description="Change a product's price, with the reason.",
        arguments=NewPrice,
        run=propose_price_change,
        confirm=True,
    ),
    Tool(
        name="create_promotion",
        description="A new promotion code from today on, for some days.",
        arguments=NewPromotion,
        run=create_promotion,
        confirm=True,
    ),
)
