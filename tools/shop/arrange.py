"""Arranges a scenario's shop: puts orders into a situation before the conversation begins."""

from collections.abc import Mapping
from typing import Any

from stateset_agents.tools.shop.calendar import NOT_DELIVERED
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.shop.stock import move

Situation = dict[str, Any]
"""Facts of an order by name: status, hold, days since delivery."""


Arranged = Mapping[str, Situation]
"""Situations by order id."""


def can_arrange(situation: Situation) -> bool:
    """Whether `arrange` can make this situation for any order: an order that has shipped cannot become pending."""
    return situation.get("status") != "pending"


def arrange(shop: Database, order_id: str, situation: Situation) -> None:
    """Put an order, with its shipment and stock, into a situation."""
    status = situation.get("status")
    if status is None and "days" in situation:
        status = "delivered" if situation["days"] != NOT_DELIVERED else "shipped"
    if status in ("shipped", "delivered"):
        _send(shop, order_id, status, situation.get("days", 3))
    elif status is not None:
        shop.run("UPDATE orders SET status = ? WHERE id = ?", status, order_id)
        shop.run("DELETE FROM shipments WHERE order_id = ?", order_id)
    if "hold" in situation:
        shop.run("UPDATE orders SET hold = ? WHERE id = ?", situation["hold"] or None, order_id)


def arrange_all(shop: Database, arranged: Arranged) -> None:
    """Arrange all orders of a scenario; this is not recorded as changes."""
    for order_id, situation in arranged.items():
        arrange(shop, order_id, situation)
    if arranged:
        shop.run("DELETE FROM change_log")


def _send(shop: Database, order_id: str, status: str, days: int) -> None:
    for line in shop.all(
        "SELECT line, sku, quantity, warehouse FROM lines WHERE order_id = ? AND warehouse IS NOT NULL",
        order_id,
    ):
        shop.run(
            "UPDATE lines SET warehouse = NULL WHERE order_id = ? AND line = ?",
            order_id,
            line["line"],
        )
        sent = -line["quantity"]
        move(
            shop,
            line["sku"],
            line["warehouse"],
            on_hand=sent,
            reserved=sent,
            why=f"sent {order_id}",
        )
    shop.run("DELETE FROM shipments WHERE order_id = ?", order_id)
    arrived = shop.today - days if status == "delivered" else None
    shop.insert(
        "shipments", id=f"S-{order_id}", order_id=order_id, carrier="DHL",
        status="delivered" if arrived else "in transit", eta_day=arrived or shop.today + 3,
        delivered_day=arrived,
    )  # fmt: skip
    left = (arrived or shop.today) - 2
    shop.run(
        "UPDATE orders SET status = ?, placed_day = MIN(placed_day, ?) WHERE id = ?",
        status,
        left,
        order_id,
    )
