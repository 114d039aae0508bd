"""Tools about orders: read, track, cancel, send elsewhere."""

from typing import Any

from stateset_agents.tools.money import show
from stateset_agents.tools.shop import Shop, show_day
from stateset_agents.tools.tool import Arguments, Session, Tool, ToolError


class Order(Arguments):
    order_id: str


class NewAddress(Arguments):
    order_id: str
    street: str
    zip: str


def get_order(shop: Shop, session: Session, call: Order) -> dict[str, Any]:
    order = shop.one("SELECT status FROM orders WHERE id = ?", call.order_id)
    assert order is not None
    lines = shop.all(
        "SELECT line, item FROM lines JOIN products USING(sku) WHERE order_id = ? ORDER BY line",
        call.order_id,
    )
    return {"status": order["status"], "lines": [f"{row['line']} {row['item']}" for row in lines]}


def track_shipment(shop: Shop, session: Session, call: Order) -> dict[str, Any]:
    found = shop.one(
        "SELECT carrier, status, eta_day FROM shipments WHERE order_id = ?", call.order_id
    )
    if found is None:
        order = shop.one("SELECT status FROM orders WHERE id = ?", call.order_id)
        assert order is not None
        return {"status": order["status"], "shipped": False}
    day = "arrived" if found["status"] == "delivered" else "arrives"
    return {"status": found["status"], "carrier": found["carrier"], day: show_day(found["eta_day"])}


def cancel_order(shop: Shop, session: Session, call: Order) -> dict[str, Any]:
    shop.run("UPDATE orders SET status = 'cancelled' WHERE id = ?", call.order_id)
    paid = shop.one(
        "SELECT SUM(CASE kind WHEN 'capture' THEN amount ELSE -amount END) AS cents "
        "FROM payments WHERE order_id = ?",
        call.order_id,
    )
    assert paid is not None
    if paid["cents"] > 0:
        shop.run(
            "INSERT INTO payments VALUES(?, ?, 'refund', NULL, ?)",
            shop.next_id("R"), call.order_id, paid["cents"],
        )  # fmt: skip
        shop.run("UPDATE lines SET refunded = paid WHERE order_id = ?", call.order_id)
    return {"cancelled": call.order_id, "refund": show(paid["cents"])}


def change_shipping_address(shop: Shop, session: Session, call: NewAddress) -> dict[str, Any]:
    if not (call.street.strip() and len(call.street) <= 80):
        raise ToolError("bad_street", "ask for the street and house number")
    if not (call.zip.isascii() and call.zip.isdigit() and len(call.zip) == 5):
        raise ToolError("bad_zip", "ask for the five digits of the zip code")
    shop.run(
        "UPDATE orders SET street = ?, zip = ? WHERE id = ?", call.street, call.zip, call.order_id
    )
    return {"ships_to": f"{call.street}, {call.zip}"}


TOOLS = (
    Tool(
        name="get_order",
        description="Status and lines of an order.",
        arguments=Order,
        run=get_order,
    ),
    Tool(
        name="track_shipment",
        description="Where a shipment is and when it arrives.",
        arguments=Order,
        run=track_shipment,
    ),
    Tool(
        name="cancel_order",
        description="Cancel an order that has not shipped and refund it.",
        arguments=Order,
        run=cancel_order,
        confirm=True,
    ),
    Tool(
        name="change_shipping_address",
        description="Send an order that has not shipped to another street and zip.",
        arguments=NewAddress,
        run=change_shipping_address,
        confirm=True,
    ),
)
