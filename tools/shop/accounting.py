"""Accounting of a run: money in minor units, counts, and the customer's groups, for business objectives.

new order of 120.00 with goods that cost 70.00   ->  revenue 12000, cost_of_goods 7000, orders 1
a refund of 45.50                                ->  refunded 4550
"""

from collections import defaultdict
from collections.abc import Iterable

from stateset_agents.scenario import Change, Scenario
from stateset_agents.tools.shop.sqlite import Shop

_WHOLE = {"sku", "quantity", "paid"}
"""Columns of a new line; a changed one has fewer."""
Cell = str | int | float | None


def books_of(shop: Shop, scenario: Scenario, changes: Iterable[Change]) -> dict[str, float]:
    """The financial effect of the changes. Amounts that need a goal are left out without one. An order that was cancelled
    again, or an exchange, is not a sale."""
    new = _rows(changes)
    exchanged = any(
        t == "returns" and row.get("resolution") == "exchange" for (t, _), row in new.items()
    )
    placed = {
        key: row
        for (table, key), row in new.items()
        if table == "orders"
        and "customer_id" in row
        and row.get("status") != "cancelled"
        and not exchanged
    }
    orders = list(placed.values())
    lines = [
        row
        for (table, _), row in new.items()
        if table == "lines" and row.keys() >= _WHOLE and str(row.get("order_id")) in placed
    ]
    products = {
        row["sku"]: row for row in shop.all("SELECT sku, cost, price, launched_day FROM products")
    }
    today = max((int(row["placed_day"] or 0) for row in orders), default=0)
    paid = sum(_number(row.get("paid")) for row in lines)
    cost = sum(_number(row["quantity"]) * products[row["sku"]]["cost"] for row in lines)
    full = sum(_number(row["quantity"]) * products[row["sku"]]["price"] for row in lines)
    given = _refunds(new)
    books = {
        "revenue": paid,
        "cost_of_goods": cost,
        "discounted": max(0.0, full - paid),
        "orders": len(orders),
        "items": sum(_number(row["quantity"]) for row in lines),
        "lines": len(lines),
        "aged_days": sum(
            _number(row["quantity"]) * max(0, today - products[row["sku"]]["launched_day"])
            for row in lines
        ),
        "refunded": sum(given.values()),
        "escalations": sum(
            table == "tickets" and row.get("kind", "escalation") == "escalation"
            for (table, _), row in new.items()
        ),
        "held": len(_reserved(new)),
    }
    if scenario.goal is not None:  # without one nobody knows what was owed
        goal = _rows(scenario.goal.changes)
        owed, reserved, wanted = _refunds(goal), _reserved(new), _reserved(goal)
        books["leaked"] = sum(max(0.0, paid - owed.get(to, 0.0)) for to, paid in given.items())
        books["held_wrongly"] = len(reserved - wanted)
        books["fraud_missed"] = len(wanted - reserved)
    return books


def segment_of(shop: Shop, scenario: Scenario) -> dict[str, str]:
    """The customer's groups, for KPIs: the language, and the tier if the order is known."""
    order = scenario.customer.slots.get("order_id", "")
    tier = shop.first(
        "SELECT tier FROM customers JOIN orders ON orders.customer_id = customers.id WHERE orders.id = ?",
        order,
    )
    persona = "+".join(scenario.complications) or "plain"
    segment = {"locale": scenario.customer.locale, "persona": persona}
    return {**segment, "tier": str(tier["tier"])} if tier is not None else segment


def _rows(changes: Iterable[Change]) -> dict[tuple[str, str], dict[str, Cell]]:
    rows: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for change in changes:
        rows[change.table, change.key][change.column] = change.value
    return dict(rows)


def _refunds(rows: dict[tuple[str, str], dict[str, Cell]]) -> dict[tuple[str, str], float]:
    """Refunded amounts, by order and line."""
    refunds: dict[tuple[str, str], float] = defaultdict(float)
    for (table, _), row in rows.items():
        if table == "payments" and row.get("kind") in ("refund", "credit", "chargeback"):
            refunds[str(row.get("order_id")), str(row.get("line"))] += _number(row.get("amount"))
    return dict(refunds)


def _reserved(rows: dict[tuple[str, str], dict[str, Cell]]) -> set[str]:
    return {key for (table, key), row in rows.items() if table == "orders" and row.get("hold")}


def _number(value: Cell) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
