"""What a run did to a shop's books: money in minor units, counts, and who it was about. Business objectives read it.

new order of 120.00 with goods that cost 70.00   ->  revenue 12000, cost_of_goods 7000, orders 1
a refund of 45.50                                ->  refunded 4550
"""

from collections import defaultdict
from collections.abc import Iterable

from stateset_agents.scenario import Change, Scenario
from stateset_agents.tools.shop import Shop

_WHOLE = {"sku", "quantity", "paid"}
"""What a new line has; one that was changed has less."""
Cell = str | int | float | None


def books(shop: Shop, scenario: Scenario, changes: Iterable[Change]) -> dict[str, float]:
    """What the changes come to. Everything is named, what did not happen as 0."""
    new = _rows(changes)
    lines = [row for (table, _), row in new.items() if table == "lines" and row.keys() >= _WHOLE]
    orders = [row for (table, _), row in new.items() if table == "orders" and "customer_id" in row]
    products = {
        row["sku"]: row for row in shop.all("SELECT sku, cost, price, launched_day FROM products")
    }
    today = max((int(row["placed_day"] or 0) for row in orders), default=0)
    paid = sum(_number(row.get("paid")) for row in lines)
    cost = sum(_number(row["quantity"]) * products[row["sku"]]["cost"] for row in lines)
    full = sum(_number(row["quantity"]) * products[row["sku"]]["price"] for row in lines)
    owed = _refunds(_rows(scenario.goal.changes).values() if scenario.goal else ())
    given = _refunds(new.values())
    held = _held(new)
    wanted = _held(_rows(scenario.goal.changes)) if scenario.goal else set()
    return {
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
        "refunded": given,
        "leaked": max(0.0, given - owed),
        "escalations": sum(table == "tickets" for table, _ in new),
        "held": len(held),
        "held_wrongly": len(held - wanted),
        "fraud_missed": len(wanted - held),
    }


def segment(shop: Shop, scenario: Scenario) -> dict[str, str]:
    """Whose conversation it is, for KPIs by group: the language, and the customer's tier where the order is known."""
    order = scenario.customer.slots.get("order_id", "")
    tier = shop.one(
        "SELECT tier FROM customers JOIN orders ON orders.customer_id = customers.id WHERE orders.id = ?",
        order,
    )
    persona = "+".join(scenario.complications) or "plain"
    found = {"locale": scenario.customer.locale, "persona": persona}
    return {**found, "tier": str(tier["tier"])} if tier is not None else found


def _rows(changes: Iterable[Change]) -> dict[tuple[str, str], dict[str, Cell]]:
    rows: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for change in changes:
        rows[change.table, change.key][change.column] = change.value
    return dict(rows)


def _refunds(rows: Iterable[dict[str, Cell]]) -> float:
    given = (row for row in rows if row.get("kind") in ("refund", "credit", "chargeback"))
    return sum(_number(row.get("amount")) for row in given)


def _held(rows: dict[tuple[str, str], dict[str, Cell]]) -> set[str]:
    return {key for (table, key), row in rows.items() if table == "orders" and row.get("hold")}


def _number(value: Cell) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
