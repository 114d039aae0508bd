"""What items cost together, and the order that comes of it. Every total adds up to the cent."""

from collections.abc import Sequence
from dataclasses import dataclass

from stateset_agents.tools.shop.money import percent_off, shares
from stateset_agents.tools.shop.stock import move, nearest
from stateset_agents.tools.shop.tax import tax_in
from stateset_agents.tools.tool import Arguments, Count, Desk, ToolError, Word

FREE_SHIPPING = 5000
SHIPPING = {"standard": 495, "express": 1295}
MAX_ITEMS = 20


class Item(Arguments):
    sku: Word
    quantity: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedLine:
    sku: str
    quantity: int
    unit_price: int
    discount: int

    @property
    def paid(self) -> int:
        return self.quantity * self.unit_price - self.discount


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Items with their prices, and a code's discount spread over them by largest remainder."""

    lines: tuple[PricedLine, ...]
    code: str
    discount: int

    @property
    def total(self) -> int:
        """Minor units, without shipping."""
        return sum(line.paid for line in self.lines)


def price_items(desk: Desk, items: Sequence[Item], code: str) -> Priced:
    """Price items today. Raises ToolError for an unknown sku, one twice, or a code that does not count."""
    if not 1 <= len(items) <= MAX_ITEMS:
        raise ToolError("bad_items", f"from 1 to {MAX_ITEMS} items")
    if len({item.sku for item in items}) < len(items):
        raise ToolError("bad_items", "each sku once, with its quantity")
    prices = []
    for item in items:
        product = desk.shop.first("SELECT price FROM products WHERE sku = ?", item.sku)
        if product is None:
            raise ToolError("no_such_sku", "use a sku of search_products")
        prices.append(int(product["price"]))
    gross = [item.quantity * price for item, price in zip(items, prices, strict=True)]
    discount = _discount(desk, sum(gross), code)
    return Priced(
        lines=tuple(
            PricedLine(sku=i.sku, quantity=i.quantity, unit_price=price, discount=share)
            for i, price, share in zip(items, prices, shares(discount, gross), strict=True)
        ),
        code=code.upper() if discount else "",
        discount=discount,
    )


def _discount(desk: Desk, total: int, code: str) -> int:
    if not code:
        return 0
    code_row = usable(desk, code, total)
    if code_row is None:
        raise ToolError("code_not_valid", "leave the code out")
    return total - percent_off(total, code_row)


def usable(desk: Desk, code: str, total: int) -> int | None:
    """Percent off for a code that counts today for this total, or None."""
    code_row = desk.shop.first(
        "SELECT percent FROM promotions WHERE code = ? AND from_day <= ? AND until_day >= ? "
        "AND min_total <= ? AND uses < max_uses",
        code.upper(), desk.shop.today, desk.shop.today, total,
    )  # fmt: skip
    return int(code_row["percent"]) if code_row else None


def shipping_price(total: int, method: str) -> int:
    """Standard shipping is free from 50.00 on."""
    return 0 if method == "standard" and total >= FREE_SHIPPING else SHIPPING[method]


def store(desk: Desk, priced: Priced, *, shipping: int, method: str = "standard") -> str:
    """Write an order for the verified customer: stock reserved, payment captured. Its id."""
    shop = desk.shop
    customer = shop.the(
        "SELECT id, street, zip, currency FROM customers WHERE id = ?", desk.session["customer"]
    )
    order = shop.next_id("N")
    shop.insert(
        "orders", id=order, customer_id=customer["id"], status="pending", street=customer["street"],
        zip=customer["zip"], placed_day=shop.today, method=method, shipping=shipping,
        currency=customer["currency"],
    )  # fmt: skip
    for number, line in enumerate(priced.lines, 1):
        warehouse = nearest(shop, line.sku, line.quantity, customer["zip"])
        if warehouse is None:
            raise ToolError("out_of_stock", f"{line.sku}: find_substitutes, or a smaller quantity")
        shop.insert(
            "lines", order_id=order, line=f"L{number}", sku=line.sku, quantity=line.quantity,
            paid=line.paid, unit_price=line.unit_price, discount=line.discount, tax=tax_in(line.paid),
            warehouse=warehouse,
        )  # fmt: skip
        move(shop, line.sku, warehouse, reserved=line.quantity, why=f"order {order}")
    total = priced.total + shipping
    shop.insert(
        "payments", id=f"CAP-{order}", order_id=order, kind="capture", amount=total, day=shop.today
    )
    if priced.code:
        redeem(desk, priced.code, order, priced.discount)
    shop.emit("order.placed", order=order, total=total)
    return order


def redeem(desk: Desk, code: str, order: str, amount: int) -> None:
    """Count a use of a code. The database refuses a second one on the same order, or one too many."""
    desk.shop.run("UPDATE promotions SET uses = uses + 1 WHERE code = ?", code)
    desk.shop.insert("redemptions", code=code, order_id=order, amount=amount)
