"""Facts about a call for the rules: session, order, quote, product, customer.

A fact is looked up only if a rule uses it: `order` from the argument `order_id`, `product` from `sku`, the customer from the session.
 `rules.FACTS` lists them.
"""

import re
from collections.abc import Iterable
from typing import Any

from stateset_agents.tools.shop.calendar import NOT_DELIVERED
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.shop.money import cents
from stateset_agents.tools.tool import Arguments, Desk, Tool, ToolError

_ID = re.compile(r"\b[A-Z]{1,4}-?\w*\d\w*(?:-\w+)*\b")
MONEY = frozenset({"amount", "price", "total"})
"""Arguments that are amounts: given as '12.50', compared in minor units."""


def facts_for(
    desk: Desk,
    tool: Tool,
    call: Arguments,
    needed: Iterable[str],
    *,
    confirmed: bool,
    approved: bool,
) -> dict[str, dict[str, Any]]:
    """The facts of a call by name. Raises ToolError for an unknown id."""
    arguments = call.model_dump()
    call_facts: dict[str, Any] = {
        name: cents(value) if name in MONEY else value for name, value in arguments.items()
    }
    shown = set(desk.session.get("seen", ()))
    call_facts |= {"confirmed": confirmed, "approved": approved, "seen": _skus(arguments) <= shown}
    facts: dict[str, dict[str, Any]] = {
        "session": {
            "customer": desk.session["customer"],
            "role": desk.session.get("role", "customer"),
        },
        "call": call_facts,
    }
    for thing in needed:
        match thing:
            case "order":
                facts["order"] = order_facts(desk.shop, arguments["order_id"])
            case "quote":
                assert tool.quote is not None
                facts["quote"] = {"amount": tool.quote(desk, call)}
            case "product":
                facts["product"] = _product(desk.shop, arguments["sku"])
            case "customer":
                facts["customer"] = _customer(desk.shop, desk.session["customer"])
    return facts


def order_facts(shop: Database, order_id: str) -> dict[str, Any]:
    """The order's customer, status, hold, and days since delivery."""
    order = shop.first("SELECT customer_id, status, hold FROM orders WHERE id = ?", order_id)
    if order is None:
        raise ToolError("not_found", "use an order of the verified customer")
    shipment = shop.first(
        "SELECT delivered_day FROM shipments WHERE order_id = ? AND delivered_day IS NOT NULL "
        "ORDER BY delivered_day DESC",
        order_id,
    )
    days = NOT_DELIVERED if shipment is None else shop.today - int(shipment["delivered_day"])
    return {**order, "hold": order["hold"] or "", "days": days}


def _product(shop: Database, sku: str) -> dict[str, Any]:
    product = shop.first("SELECT price, cost, floor, launched_day FROM products WHERE sku = ?", sku)
    if product is None:
        raise ToolError("no_such_sku", "use a sku of search_products")
    changed = shop.first(
        "SELECT day FROM price_changes WHERE sku = ? ORDER BY day DESC, id DESC", sku
    )
    launched = product.pop("launched_day")
    since = launched if changed is None else changed["day"]
    return {**product, "age": shop.today - launched, "days_since_change": shop.today - since}


def _customer(shop: Database, customer: str) -> dict[str, Any]:
    row = shop.first("SELECT tier, marketing FROM customers WHERE id = ?", customer)
    if row is None:
        return {"tier": "", "marketing": 0, "refunded_30": 0}
    paid_out = shop.the(
        "SELECT COALESCE(SUM(amount), 0) AS cents FROM payments JOIN orders ON orders.id = order_id "
        "WHERE customer_id = ? AND kind IN ('refund', 'credit') AND line IS NOT NULL AND day > ?",
        customer, shop.today - 30,
    )  # fmt: skip
    return {**row, "refunded_30": int(paid_out["cents"])}


def ids_in(text: str) -> set[str]:
    """Ids in a tool's result: 'P21', 'W20417', 'S-W20417'."""
    return set(_ID.findall(text))


def _skus(value: Any) -> set[str]:
    """Every sku among arguments, at any depth."""
    if isinstance(value, dict):
        own = {v for k, v in value.items() if k.endswith("sku") and isinstance(v, str) and v}
        return own.union(*(_skus(v) for v in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(_skus(v) for v in value))
    return set()
