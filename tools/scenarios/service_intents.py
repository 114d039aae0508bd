"""The five intents of the service agent: how each is drawn, requested and solved."""

from collections.abc import Callable, Mapping

from stateset_agents.tools.scenarios.draft import Draft, RuleBites
from stateset_agents.tools.shop.calendar import TODAY
from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.generate import street

RETURN_DAYS = 30
"""Days on either side of the shop's return window, for refund scenarios."""


def order_in(draft: Draft, *statuses: str) -> Row:
    marks = ", ".join("?" for _ in statuses)
    rows = draft.before.all(
        "SELECT orders.id, orders.status, customers.zip, CASE WHEN delivered_day IS NULL THEN '' "
        "WHEN delivered_day >= ? THEN 'returnable' ELSE 'late' END AS window FROM orders "
        "JOIN customers ON customer_id = customers.id LEFT JOIN shipments ON order_id = orders.id "
        f"WHERE orders.status IN ({marks}) OR window IN ({marks}) ORDER BY orders.id",
        TODAY - RETURN_DAYS, *statuses, *statuses,
    )  # fmt: skip
    if not rows:
        raise LookupError(statuses)
    order = draft.rng.choice(rows)
    draft.slots |= {"order_id": order["id"], "zip": order["zip"]}
    return order


def _shipping_status(draft: Draft) -> None:
    order = order_in(draft, "pending", "shipped", "shipped", "delivered")
    draft.open_with("order_id", "zip")
    draft.verify(order)
    shipment = draft.call("track_shipment", order_id=order["id"])
    draft.consulted.append(("track_shipment", "get_order"))
    if "arrives" in shipment:
        draft.tell("arrival", shipment["arrives"])
        draft.say("shipping_arrives", carrier=shipment["carrier"], day=shipment["arrives"])
    elif "arrived" in shipment:
        draft.tell("arrival", shipment["arrived"])
        draft.tell_words("delivered", "arrived", "not_arrived")
        draft.say("shipping_arrived", carrier=shipment["carrier"], day=shipment["arrived"])
    else:
        draft.tell_words("pending", "waiting")
        draft.say("shipping_pending")


def _cancel(draft: Draft) -> None:
    order = order_in(
        draft, *draft.rng.choice((("pending",), ("pending",), ("shipped", "delivered")))
    )
    draft.open_with("order_id", "zip")
    draft.verify(order)
    draft.call("get_order", order_id=order["id"])
    if order["status"] == "pending":
        result = draft.call("cancel_order", before=draft.before_write(), order_id=order["id"])
        draft.tell("amount", result["refund"])
        draft.say("cancelled", amount=result["refund"])
    else:
        draft.forbidden.append("cancel_order")
        draft.tell_status(order["status"])
        draft.say("cancel_late", status=draft.phrases.words[order["status"]][0])


def _refund(draft: Draft) -> None:
    order = order_in(
        draft, *draft.rng.choice((("returnable",),) * 3 + (("late",), ("shipped", "pending")))
    )
    lines = draft.before.all(
        "SELECT line, item FROM lines JOIN products USING(sku) WHERE order_id = ?", order["id"]
    )
    line = draft.rng.choice(lines)
    draft.slots["item"] = line["item"]
    draft.open_with("order_id", "zip", item=line["item"])
    draft.verify(order)
    draft.call("get_order", order_id=order["id"])
    result = draft.call("check_return_eligibility", order_id=order["id"], line=line["line"])
    if result["eligible"]:
        draft.call(
            "issue_refund", before=draft.before_write(), order_id=order["id"], line=line["line"],
            amount=result["amount"],
        )  # fmt: skip
        draft.tell("amount", result["amount"])
        draft.say("refunded", amount=result["amount"])
    elif result["reason"] == "on hold":
        raise RuleBites("issue_refund")
    else:
        draft.forbidden.append("issue_refund")
        draft.consulted.append(("check_return_eligibility", "get_order"))
        late = result["reason"].startswith("delivered")
        reason = draft.tell_reason(result["reason"])
        draft.say("refund_late" if late else "refund_early", reason=reason)


def _address_change(draft: Draft) -> None:
    order = order_in(
        draft, *draft.rng.choice((("pending",), ("pending",), ("pending",), ("shipped",)))
    )
    new = street(draft.rng, draft.split)
    draft.slots["street"] = new
    pending = order["status"] == "pending"
    if draft.complicated("changed_mind", if_=pending):
        draft.slips["street"] = street(draft.rng, draft.split)
    draft.open_with("order_id", "zip", requested=("street",))
    draft.verify(order)
    draft.call("get_order", order_id=order["id"])
    if pending:
        if "street" in draft.slips:
            draft.tries(
                "change_shipping_address", order_id=order["id"], street=draft.slips["street"],
                zip=draft.slots["zip"],
            )  # fmt: skip
            draft.say("ask", slots=draft.phrases.slots["street"])
        draft.call(
            "change_shipping_address", before=draft.before_write(), order_id=order["id"], street=new,
            zip=draft.slots["zip"],
        )  # fmt: skip
        draft.tell("street", new)
        draft.say("address_done", street=new)
    else:
        draft.forbidden.append("change_shipping_address")
        draft.tell_status(order["status"])
        draft.say("address_late", status=draft.phrases.words[order["status"]][0])


def _price_question(draft: Draft) -> None:
    product, promotion = _product_and_code(draft)
    draft.open_with(item=product["item"], code=promotion["code"])
    _quote(draft, product, promotion)


def second_request(draft: Draft) -> None:
    """A second request after the first."""
    product, promotion = _product_and_code(draft)
    draft.then.append(draft.asks("price_question", item=product["item"], code=promotion["code"]))
    _quote(draft, product, promotion)


def _product_and_code(draft: Draft) -> tuple[Row, Row]:
    product = draft.rng.choice(draft.before.all("SELECT sku, item FROM products ORDER BY sku"))
    promotion = draft.rng.choice(draft.before.all("SELECT code FROM promotions ORDER BY code"))
    draft.slots |= {"item": product["item"], "code": promotion["code"]}
    return product, promotion


def _quote(draft: Draft, product: Row, promotion: Row) -> None:
    draft.call("search_products", query=product["item"])
    quote = draft.call("quote_cart", sku=product["sku"], code=promotion["code"])
    draft.consulted.append(("quote_cart",))
    draft.tell("total", quote["total"])
    draft.tell_words("stock", "in_stock", count=quote["in_stock"])
    if quote["code"] == "valid":
        draft.say("quote_valid", total=quote["total"], stock=quote["in_stock"])
    else:
        draft.tell_words("code", "code_over")
        draft.say("quote_expired", total=quote["total"], stock=quote["in_stock"])


SERVICE_WRITERS: Mapping[str, Callable[[Draft], None]] = {
    "shipping_status": _shipping_status,
    "cancel": _cancel,
    "refund": _refund,
    "address_change": _address_change,
    "price_question": _price_question,
}
