"""A proposed change in words, from the shop: which item, which order, which amount. Ids alone nobody can consent to."""

from typing import Any

from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.tool import Arguments, Desk, Tool, ToolError

SPOKEN = {"total", "amount", "price", "quantity", "sku", "line", "order_id", "items"}
"""Arguments that are said in words of their own."""


def summary_of(desk: Desk, tool: Tool, call: Arguments) -> str:
    """`issue refund: Oak shelf (line L2, 2 pieces, paid 17.20) of order W20417, 17.20 in all`."""
    shop, given = desk.shop, call.model_dump()
    order, line = given.get("order_id"), given.get("line")
    parts: list[str] = []
    if order and line:
        parts.append(f"{_line(shop, order, line)} of order {order}")
    elif order:
        parts.append(f"order {order} ({_order(shop, order)})")
    if given.get("sku"):
        new = "for " if line else ""
        count = f"{given['quantity']} x " if "quantity" in given else ""
        parts.append(f"{new}{count}{_item(shop, given['sku'])}")
    for item in given.get("items") or []:
        parts.append(f"{item['quantity']} x {_item(shop, item['sku'])}")
    parts += [
        f"{name.replace('_', ' ')}: {value}"
        for name, value in given.items()
        if name not in SPOKEN and value not in ("", None)
    ]
    amount = _amount(desk, tool, call)
    if amount:
        parts.append(amount)
    return f"{tool.name.replace('_', ' ')}: {', '.join(parts)}"


def _amount(desk: Desk, tool: Tool, call: Arguments) -> str:
    """The right amount as the shop computes it, or else the one of the call."""
    if tool.quote is not None:
        try:
            return f"{show(tool.quote(desk, call))} in all"
        except ToolError:
            pass
    given = call.model_dump()
    name = next((n for n in ("amount", "total", "price") if given.get(n)), None)
    return f"{name} {given[name]}" if name else ""


def _line(shop: Database, order: str, line: str) -> str:
    row = shop.first(
        "SELECT item, quantity, paid FROM lines JOIN products USING(sku) WHERE order_id = ? AND line = ?",
        order, line,
    )  # fmt: skip
    if row is None:
        return f"line {line}"
    return f"{row['item']} (line {line}, {_pieces(row['quantity'])}, paid {show(row['paid'])})"


def _order(shop: Database, order: str) -> str:
    rows = shop.all(
        "SELECT item, quantity, paid FROM lines JOIN products USING(sku) WHERE order_id = ? ORDER BY line",
        order,
    )  # fmt: skip
    items = ", ".join(f"{row['quantity']} x {row['item']}" for row in rows)
    return f"{items}; paid {show(sum(row['paid'] for row in rows))}" if rows else "nothing in it"


def _item(shop: Database, sku: str) -> str:
    row: dict[str, Any] | None = shop.first("SELECT item, price FROM products WHERE sku = ?", sku)
    return sku if row is None else f"{row['item']} ({sku}, {show(row['price'])} each)"


def _pieces(count: int) -> str:
    return "1 piece" if count == 1 else f"{count} pieces"
