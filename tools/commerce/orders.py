"""Tools about orders: read, track, place, cancel, send elsewhere or faster, hold."""

from typing import Any, Literal

from stateset_agents.tools.commerce.checkout import Item, price_items, shipping_price, store
from stateset_agents.tools.commerce.customers import check_address
from stateset_agents.tools.shop.calendar import show_day
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.shop.stock import move
from stateset_agents.tools.tool import Arguments, Desk, Money, Text, Tool, ToolError, Word

Method = Literal["standard", "express"]


class Order(Arguments):
    order_id: Word


class NewAddress(Arguments):
    order_id: Word
    street: Word
    zip: Word


class MethodQuestion(Arguments):
    order_id: Word
    method: Method


class NewMethod(MethodQuestion):
    total: Money


class Cart(Arguments):
    items: list[Item]
    code: Word = ""
    method: Method = "standard"


class Purchase(Cart):
    total: Money


class Hold(Arguments):
    order_id: Word
    reason: Text


def get_order(desk: Desk, call: Order) -> dict[str, Any]:
    order = desk.shop.the("SELECT status, hold FROM orders WHERE id = ?", call.order_id)
    hold = {"hold": order["hold"]} if order["hold"] else {}
    lines = desk.shop.all(
        "SELECT line, item FROM lines JOIN products USING(sku) WHERE order_id = ? ORDER BY line",
        call.order_id,
    )
    shown = [f"{row['line']} {row['item']}" for row in lines]
    return {"status": order["status"], **hold, "lines": shown}


def track_shipment(desk: Desk, call: Order) -> dict[str, Any]:
    shipment = desk.shop.first(
        "SELECT carrier, status, eta_day FROM shipments WHERE order_id = ? ORDER BY eta_day DESC, id",
        call.order_id,
    )
    if shipment is None:
        order = desk.shop.the("SELECT status FROM orders WHERE id = ?", call.order_id)
        return {"status": order["status"], "shipped": False}
    day = "arrived" if shipment["status"] == "delivered" else "arrives"
    return {
        "status": shipment["status"],
        "carrier": shipment["carrier"],
        day: show_day(shipment["eta_day"]),
    }


def quote_order(desk: Desk, call: Cart) -> dict[str, Any]:
    priced = price_items(desk, call.items, call.code)
    shipping = shipping_price(priced.total, call.method)
    return {
        "lines": [f"{line.quantity} {line.sku} {show(line.paid)}" for line in priced.lines],
        "discount": show(priced.discount),
        "shipping": show(shipping),
        "total": show(priced.total + shipping),
    }


def _order_total(desk: Desk, call: Cart) -> int:
    total = price_items(desk, call.items, call.code).total
    return total + shipping_price(total, call.method)


def place_order(desk: Desk, call: Purchase) -> dict[str, Any]:
    priced = price_items(desk, call.items, call.code)
    shipping = shipping_price(priced.total, call.method)
    order = store(desk, priced, shipping=shipping, method=call.method)
    return {"order": order, "total": call.total}


def cancel_order(desk: Desk, call: Order) -> dict[str, Any]:
    shop = desk.shop
    shop.run("UPDATE orders SET status = 'cancelled' WHERE id = ?", call.order_id)
    paid = shop.the(
        "SELECT SUM(CASE kind WHEN 'capture' THEN amount ELSE -amount END) AS cents "
        "FROM payments WHERE order_id = ?",
        call.order_id,
    )
    cents = int(paid["cents"] or 0)
    if cents > 0:
        shop.insert(
            "payments", id=shop.next_id("R"), order_id=call.order_id, kind="refund", amount=cents,
            day=shop.today,
        )  # fmt: skip
    for row in shop.all(
        "SELECT sku, warehouse, quantity FROM lines WHERE order_id = ? AND warehouse IS NOT NULL ORDER BY line",
        call.order_id,
    ):
        move(
            shop, row["sku"], row["warehouse"], reserved=-row["quantity"], why=f"cancel {call.order_id}"
        )  # fmt: skip
    shop.run("DELETE FROM backorders WHERE order_id = ?", call.order_id)
    shop.run(
        "UPDATE lines SET refunded = paid, cancelled = quantity, warehouse = NULL WHERE order_id = ?",
        call.order_id,
    )
    shop.emit("order.cancelled", order=call.order_id, refund=cents)
    return {"cancelled": call.order_id, "refund": show(cents)}


def change_shipping_address(desk: Desk, call: NewAddress) -> dict[str, Any]:
    check_address(call.street, call.zip)
    desk.shop.run(
        "UPDATE orders SET street = ?, zip = ? WHERE id = ?", call.street, call.zip, call.order_id
    )
    return {"ships_to": f"{call.street}, {call.zip}"}


def quote_shipping(desk: Desk, call: MethodQuestion) -> dict[str, Any]:
    return {"method": call.method, "total": show(_method_price(desk, call))}


def _method_price(desk: Desk, call: MethodQuestion) -> int:
    """What changing the method costs: the difference, never less than nothing."""
    order = desk.shop.the("SELECT method, shipping FROM orders WHERE id = ?", call.order_id)
    lines = desk.shop.the("SELECT SUM(paid) AS paid FROM lines WHERE order_id = ?", call.order_id)
    wanted = shipping_price(int(lines["paid"]), call.method)
    return 0 if order["method"] == call.method else max(0, wanted - int(order["shipping"]))


def change_shipping_method(desk: Desk, call: NewMethod) -> dict[str, Any]:
    shop, price = desk.shop, _method_price(desk, call)
    shop.run(
        "UPDATE orders SET method = ?, shipping = shipping + ? WHERE id = ?",
        call.method, price, call.order_id,
    )  # fmt: skip
    if price:
        shop.insert(
            "payments", id=shop.next_id("CAP-"), order_id=call.order_id, kind="capture", amount=price,
            day=shop.today,
        )  # fmt: skip
    return {"method": call.method, "charged": show(price)}


def hold_order(desk: Desk, call: Hold) -> dict[str, Any]:
    _exists(desk, call.order_id)
    desk.shop.run("UPDATE orders SET hold = ? WHERE id = ?", call.reason, call.order_id)
    desk.shop.emit("order.held", order=call.order_id)
    return {"held": call.order_id}


def release_hold(desk: Desk, call: Order) -> dict[str, Any]:
    _exists(desk, call.order_id)
    desk.shop.run("UPDATE orders SET hold = NULL WHERE id = ?", call.order_id)
    return {"released": call.order_id}


def _exists(desk: Desk, order_id: str) -> None:
    if desk.shop.first("SELECT id FROM orders WHERE id = ?", order_id) is None:
        raise ToolError("not_found", "use an order of the shop")


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
        name="quote_order",
        description="What several items cost together: lines, discount of a code, shipping, total.",
        arguments=Cart,
        run=quote_order,
    ),
    Tool(
        name="place_order",
        description="Order items for the verified customer at the total of quote_order.",
        arguments=Purchase,
        run=place_order,
        confirm=True,
        quote=_order_total,
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
    Tool(
        name="quote_shipping",
        description="What another shipping method would cost on top.",
        arguments=MethodQuestion,
        run=quote_shipping,
    ),
    Tool(
        name="change_shipping_method",
        description="Ship an order faster or slower, at the total of quote_shipping.",
        arguments=NewMethod,
        run=change_shipping_method,
        confirm=True,
        quote=_method_price,
    ),
    Tool(
        name="hold_order",
        description="Stop an order until a person has looked at it.",
        arguments=Hold,
        run=hold_order,
    ),
    Tool(
        name="release_hold",
        description="Let an order go on.",
        arguments=Order,
        run=release_hold,
    ),
)
