"""What would have to be different about an order so that a rule bites: complications, from the rule's own row.

return-window: order.status == "delivered" and order.days <= 30
near misses:   delivered 31 days ago; not delivered yet
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from stateset_agents.tools.rules import Rule, facts_of
from stateset_agents.tools.shop.calendar import NOT_DELIVERED
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.shop.stock import move

Situation = dict[str, Any]
"""Facts of an order by name: status, hold, days since delivery."""
Arranged = Mapping[str, Situation]
"""Situations by order id."""

_DOMAINS: dict[str, tuple[Any, ...]] = {
    "status": ("pending", "shipped", "delivered"),
    "hold": ("", "review"),
}


def near_misses(rule: Rule) -> Iterator[Situation]:
    """Situations that the rule denies and that one fact away from it allows, without repetition.

    Empty for rules that are about something else than the state of an order.
    """
    read = sorted({name for thing, name in facts_of(rule.unless) if thing == "order"})
    if {thing for thing, _ in facts_of(rule.unless)} - {"order", "limit"} or not read:
        return
    numbers = {int(n) for n in re.findall(r"\b\d+\b", rule.unless)} | set(rule.limits.values())
    around = sorted({n + step for n in numbers for step in (-1, 0, 1) if n + step >= 0})
    values = [_DOMAINS.get(name, (*around, NOT_DELIVERED)) for name in read]
    every = [
        dict(zip(read, combination, strict=True)) for combination in itertools.product(*values)
    ]
    every = [s for s in every if _possible(s)]
    allowed = [s for s in every if rule.allows({"order": s})]
    for situation in every:
        if situation in allowed:
            continue
        if any(
            sum(situation[n] != other[n] for n in read) <= _apart(situation) for other in allowed
        ):
            yield situation


def _apart(situation: Situation) -> int:
    """Not delivered is two facts at once: the status, and that there are no days to count."""
    return 2 if situation.get("days") == NOT_DELIVERED else 1


def _possible(situation: Situation) -> bool:
    if "status" not in situation or "days" not in situation:
        return True
    delivered: bool = situation["status"] == "delivered"
    return delivered == bool(situation["days"] != NOT_DELIVERED)


def can_arrange(situation: Situation) -> bool:
    """Whether `arrange` can do it to any order: nothing becomes pending that has left."""
    return situation.get("status") != "pending"


def arrange(shop: Database, order_id: str, situation: Situation) -> None:
    """Change an order, and its shipment and stock with it, to be in a situation."""
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
    """A shop as a scenario starts from; what was arranged is not among its changes."""
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
