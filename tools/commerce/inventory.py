"""Tools about stock: how much there is, when it would arrive, what could go instead."""

from typing import Any

from stateset_agents.tools.shop.calendar import show_day
from stateset_agents.tools.shop.database import Database, Row
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.shop.stock import delivery_day, move, nearest
from stateset_agents.tools.tool import Arguments, Count, Desk, Tool, ToolError, Word

RESERVED_DAYS = 2


class Sku(Arguments):
    sku: Word


class Delivery(Arguments):
    sku: Word
    zip: Word


class Reservation(Arguments):
    sku: Word
    quantity: Count


class Order(Arguments):
    order_id: Word


class Line(Arguments):
    order_id: Word
    line: Word


class Substitute(Arguments):
    order_id: Word
    line: Word
    sku: Word


def find_product(shop: Database, sku: str) -> Row:
    """A product with its free units over all warehouses. Raises ToolError for an unknown sku."""
    product = shop.first(
        "SELECT sku, item, price, family, (SELECT COALESCE(SUM(on_hand - reserved), 0) FROM stock "
        "WHERE stock.sku = products.sku) AS free FROM products WHERE sku = ?",
        sku,
    )
    if product is None:
        raise ToolError("no_such_sku", "use a sku of search_products")
    return {**product, "free": int(product["free"])}


def check_stock(desk: Desk, call: Sku) -> dict[str, Any]:
    return {"in_stock": find_product(desk.shop, call.sku)["free"]}


def quote_delivery(desk: Desk, call: Delivery) -> dict[str, Any]:
    find_product(desk.shop, call.sku)
    days = {
        method: delivery_day(desk.shop, call.sku, call.zip, method=method)
        for method in ("standard", "express")
    }
    if days["standard"] is None:
        return {"available": False}
    return {"available": True} | {m: show_day(day) for m, day in days.items() if day is not None}


def find_substitutes(desk: Desk, call: Sku) -> dict[str, Any]:
    product = find_product(desk.shop, call.sku)
    rows = desk.shop.all(
        "SELECT sku, item, price FROM products WHERE family = ? AND sku <> ? AND "
        "(SELECT SUM(on_hand - reserved) FROM stock WHERE stock.sku = products.sku) > 0 "
        "ORDER BY CASE WHEN price <= ? THEN 0 ELSE 1 END, sku LIMIT 3",
        product["family"], call.sku, product["price"],
    )  # fmt: skip
    return {"substitutes": [f"{row['sku']} {row['item']} {show(row['price'])}" for row in rows]}


def reserve(desk: Desk, call: Reservation) -> dict[str, Any]:
    shop = desk.shop
    find_product(shop, call.sku)
    zip = shop.the("SELECT zip FROM customers WHERE id = ?", desk.session["customer"])["zip"]
    warehouse = nearest(shop, call.sku, call.quantity, zip)
    if warehouse is None:
        raise ToolError("out_of_stock", "find_substitutes, or a smaller quantity")
    id, until = shop.next_id("H"), shop.today + RESERVED_DAYS
    shop.insert(
        "reservations", id=id, customer_id=desk.session["customer"], sku=call.sku, warehouse=warehouse,
        quantity=call.quantity, until_day=until,
    )  # fmt: skip
    move(shop, call.sku, warehouse, reserved=call.quantity, why=f"reservation {id}")
    return {"reservation": id, "until": show_day(until)}


def split_shipment(desk: Desk, call: Order) -> dict[str, Any]:
    """Send what is there today, and the lines on backorder when they come in."""
    shop = desk.shop
    rows = shop.all(
        "SELECT lines.line, quantity, warehouse, eta_day FROM lines LEFT JOIN backorders "
        "ON backorders.order_id = lines.order_id AND backorders.line = lines.line "
        "WHERE lines.order_id = ? ORDER BY lines.line",
        call.order_id,
    )
    days = {row["line"]: row["eta_day"] or shop.today for row in rows}
    if len(set(days.values())) < 2:
        raise ToolError("nothing_to_split", "all of it leaves on one day")
    if shop.first("SELECT id FROM parcels WHERE order_id = ?", call.order_id) is not None:
        raise ToolError("split_already", "tell the customer the parcels")
    for row in rows:
        shop.insert(
            "parcels", id=shop.next_id("B"), order_id=call.order_id, line=row["line"],
            quantity=row["quantity"], warehouse=row["warehouse"], day=days[row["line"]],
        )  # fmt: skip
    return {"parcels": [f"{line} {show_day(day)}" for line, day in days.items()]}


def _line(desk: Desk, order_id: str, line: str) -> Row:
    row = desk.shop.first(
        "SELECT sku, quantity, paid, refunded, unit_price, warehouse FROM lines WHERE order_id = ? AND line = ?",
        order_id, line,
    )  # fmt: skip
    if row is None:
        raise ToolError("no_such_line", "use a line of get_order")
    return row


def backorder(desk: Desk, call: Line) -> dict[str, Any]:
    """Let a line wait for what is inbound; its stock goes back on sale."""
    shop, line = desk.shop, _line(desk, call.order_id, call.line)
    inbound = shop.first(
        "SELECT eta_day FROM inbound WHERE sku = ? AND quantity >= ? ORDER BY eta_day, id",
        line["sku"], line["quantity"],
    )  # fmt: skip
    if inbound is None:
        raise ToolError("nothing_inbound", "find_substitutes, or cancel the order")
    day = int(inbound["eta_day"])
    shop.insert(
        "backorders", id=shop.next_id("BO"), order_id=call.order_id, line=call.line, eta_day=day
    )
    if line["warehouse"] is not None:
        move(
            shop, line["sku"], line["warehouse"], reserved=-line["quantity"],
            why=f"backorder {call.order_id}",
        )  # fmt: skip
        shop.run(
            "UPDATE lines SET warehouse = NULL WHERE order_id = ? AND line = ?",
            call.order_id, call.line,
        )  # fmt: skip
    return {"backorder": call.line, "arrives": show_day(day)}


def substitute_line(desk: Desk, call: Substitute) -> dict[str, Any]:
    """Put another product of the family on a line. A dearer one costs no more; a cheaper one is refunded."""
    shop, line = desk.shop, _line(desk, call.order_id, call.line)
    old, new = find_product(shop, line["sku"]), find_product(shop, call.sku)
    if new["family"] != old["family"] or new["sku"] == old["sku"]:
        raise ToolError("no_substitute", "use a sku of find_substitutes")
    zip = shop.the("SELECT zip FROM orders WHERE id = ?", call.order_id)["zip"]
    warehouse = nearest(shop, call.sku, line["quantity"], zip)
    if warehouse is None:
        raise ToolError("out_of_stock", "find_substitutes")
    if line["warehouse"] is not None:
        move(
            shop, line["sku"], line["warehouse"], reserved=-line["quantity"],
            why=f"substitute {call.order_id}",
        )  # fmt: skip
    move(shop, call.sku, warehouse, reserved=line["quantity"], why=f"substitute {call.order_id}")
    shop.run(
        "UPDATE lines SET sku = ?, warehouse = ? WHERE order_id = ? AND line = ?",
        call.sku, warehouse, call.order_id, call.line,
    )  # fmt: skip
    shop.run("DELETE FROM backorders WHERE order_id = ? AND line = ?", call.order_id, call.line)
    left = int(line["paid"]) - int(line["refunded"])
    back = max(0, min(left, left - int(new["price"]) * int(line["quantity"])))
    if back:
        give_back(desk, call.order_id, call.line, back)
    return {"line": call.line, "item": new["item"], "refunded": show(back)}


def give_back(desk: Desk, order_id: str, line: str, amount: int) -> None:
    """Refund a part of what was paid for a line."""
    shop = desk.shop
    shop.insert(
        "payments", id=shop.next_id("R"), order_id=order_id, kind="refund", line=line, amount=amount,
        day=shop.today,
    )  # fmt: skip
    shop.run(
        "UPDATE lines SET refunded = refunded + ? WHERE order_id = ? AND line = ?",
        amount, order_id, line,
    )  # fmt: skip
    shop.emit("refund.issued", order=order_id, line=line, amount=amount)


TOOLS = (
    Tool(
        name="check_stock",
        description="Free units of a product.",
        arguments=Sku,
        run=check_stock,
    ),
    Tool(
        name="quote_delivery",
        description="When a product would arrive at a zip code, standard and express.",
        arguments=Delivery,
        run=quote_delivery,
    ),
    Tool(
        name="find_substitutes",
        description="Products in stock that could go instead of one.",
        arguments=Sku,
        run=find_substitutes,
    ),
    Tool(
        name="reserve",
        description="Keep units of a product for the verified customer for two days.",
        arguments=Reservation,
        run=reserve,
        confirm=True,
    ),
    Tool(
        name="split_shipment",
        description="Send what is in stock now, and lines on backorder later.",
        arguments=Order,
        run=split_shipment,
        confirm=True,
    ),
    Tool(
        name="backorder",
        description="Let a line wait for stock that is on its way.",
        arguments=Line,
        run=backorder,
        confirm=True,
    ),
    Tool(
        name="substitute_line",
        description="Put a product of find_substitutes on a line instead.",
        arguments=Substitute,
        run=substitute_line,
        confirm=True,
    ),
)
