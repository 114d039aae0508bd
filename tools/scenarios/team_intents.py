"""The intents of the agents besides `service`, for customers, merchant and staff: each acted out on a shop.

A writer picks something in the shop, acts as a correct agent, and defines the goal.
"""

from collections.abc import Callable

from stateset_agents.tools.scenarios.draft import Draft, RuleBites
from stateset_agents.tools.shop.calendar import show_day
from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.tool import Role


def _line(draft: Draft, condition: str) -> Row:
    """A line of an order in a given state, with its item: the subject of the request."""
    rows = draft.before.all(
        "SELECT lines.order_id, lines.line, lines.sku, item, paid - refunded AS worth, lines.unit_price, cost, "
        "customers.zip, customer_id FROM lines JOIN products ON products.sku = lines.sku "
        "JOIN orders ON orders.id = lines.order_id JOIN customers ON customers.id = customer_id "
        f"LEFT JOIN shipments ON shipments.order_id = orders.id WHERE {condition} ORDER BY 1, 2"
    )
    if not rows:
        raise LookupError(condition)
    line = draft.rng.choice(rows)
    draft.slots |= {"order_id": line["order_id"], "zip": line["zip"], "item": line["item"]}
    return line


_RETURNABLE = "delivered_day >= 170"
_PENDING = "orders.status = 'pending'"


def _identified(draft: Draft, line: Row) -> None:
    draft.verify({"id": line["order_id"]})
    draft.call("get_order", order_id=line["order_id"])


def _refused(draft: Draft, line: Row, *forbidden: str) -> bool:
    """Whether the line cannot be returned; then the agent states the reason and does nothing."""
    result = draft.call("check_return_eligibility", order_id=line["order_id"], line=line["line"])
    if result["eligible"]:
        return False
    if result["reason"] == "on hold":
        raise RuleBites(forbidden[0])
    draft.forbidden += forbidden
    draft.consulted.append(("check_return_eligibility",))
    draft.say("not_returnable", reason=draft.tell_reason(result["reason"]))
    return True


def _return(draft: Draft) -> None:
    line = _line(draft, draft.rng.choice((_RETURNABLE, _RETURNABLE, "delivered_day < 170")))
    draft.open_with("order_id", "zip", item=line["item"])
    _identified(draft, line)
    if not _refused(draft, line, "create_return"):
        result = draft.call(
            "create_return", before=draft.before_write(), order_id=line["order_id"], line=line["line"],
            reason="customer wants to return it",
        )  # fmt: skip
        draft.tell("label", result["return"])
        draft.say("returned", label=result["return"])


def _exchange(draft: Draft) -> None:
    line = _line(draft, _RETURNABLE)
    draft.open_with("order_id", "zip", item=line["item"])
    _identified(draft, line)
    if _refused(draft, line, "exchange"):
        return
    sku = _looked_up(draft, line["item"], line["sku"])
    offered = draft.call("find_substitutes", sku=sku)["substitutes"]
    fitting = [row.split()[0] for row in offered if _cents(row) <= line["worth"]]
    if not fitting:
        raise LookupError("nothing to exchange for")
    result = draft.call(
        "exchange", before=draft.before_write(), order_id=line["order_id"], line=line["line"],
        sku=fitting[0],
    )  # fmt: skip
    draft.tell("order", result["order"])
    draft.say("exchanged", order=result["order"])


def _damage_claim(draft: Draft) -> None:
    line = _line(
        draft,
        f"{_RETURNABLE} AND 'M-' || lines.order_id || '-' || lines.line IN (SELECT id FROM media)",
    )
    photo = f"M-{line['order_id']}-{line['line']}"
    draft.slots["photo"] = photo
    draft.open_with("order_id", "zip", item=line["item"], photo=photo)
    _identified(draft, line)
    place = {"order_id": line["order_id"], "line": line["line"]}
    shown = draft.call("inspect_photo", photo=photo)["shows"]
    draft.consulted.append(("inspect_photo",))
    if shown != line["item"]:
        draft.forbidden += ("attach_claim_photo", "issue_refund")
        draft.tell_words("photo", "other_photo")
        draft.say("photo_wrong")
        return
    draft.call("attach_claim_photo", before=draft.before_write(), photo=photo, **place)
    if not _refused(draft, line, "issue_refund"):
        amount = show(line["worth"])
        draft.call("issue_refund", amount=amount, **place)
        draft.tell("amount", amount)
        draft.say("refunded", amount=amount)


def _cross_sell(draft: Draft) -> None:
    line = _line(draft, "TRUE")
    budget = show(draft.rng.randint(20, 180) * 100)
    draft.slots["budget"] = budget
    draft.open_with("order_id", "zip", item=line["item"], budget=budget)
    sku = _looked_up(draft, line["item"], line["sku"])
    fits = draft.call("recommend", sku=sku, budget=budget)["fits"]
    draft.consulted.append(("recommend",))
    if not fits:
        draft.forbidden.append("place_order")
        draft.tell_words("nothing", "nothing")
        draft.say("nothing_fits")
        return
    draft.verify({"id": line["order_id"]})
    items = [{"sku": fits[0].split()[0], "quantity": 1}]
    quote = draft.call("quote_order", items=items)
    result = draft.call(
        "place_order", before=draft.before_write(), items=items, total=quote["total"]
    )
    draft.tell("order", result["order"])
    draft.tell("total", quote["total"])
    draft.say("ordered", order=result["order"], total=quote["total"])


def _price_match(draft: Draft) -> None:
    line = _line(draft, "orders.status IN ('pending', 'shipped') OR delivered_day >= 186")
    lower = line["unit_price"] - draft.rng.randint(50, 1900)
    if lower < line["cost"]:
        raise LookupError("below cost")
    price = show(lower)
    draft.slots["price"] = price
    draft.open_with("order_id", "zip", item=line["item"], price=price)
    _identified(draft, line)
    result = draft.call(
        "price_match", before=draft.before_write(), order_id=line["order_id"], line=line["line"],
        price=price,
    )  # fmt: skip
    draft.tell("amount", result["refunded"])
    draft.say("matched", amount=result["refunded"])


def _promotion(draft: Draft) -> None:
    line = _line(draft, _PENDING)
    code = draft.rng.choice(draft.before.all("SELECT code FROM promotions ORDER BY code"))["code"]
    draft.slots["code"] = code
    draft.open_with("order_id", "zip", code=code)
    if not draft.call("validate_promotion", code=code)["valid"]:
        draft.forbidden.append("apply_promotion")
        draft.consulted.append(("validate_promotion",))
        draft.tell_words("code", "code_over")
        draft.say("code_over")
        return
    draft.verify({"id": line["order_id"]})
    result = draft.call(
        "apply_promotion", before=draft.before_write(), order_id=line["order_id"], code=code
    )
    draft.tell("amount", result["refunded"])
    draft.say("code_applied", amount=result["refunded"])


def _markdown(draft: Draft) -> None:
    product = draft.rng.choice(
        draft.before.all(
            "SELECT sku, item, price, floor FROM products WHERE launched_day <= ? ORDER BY sku",
            draft.shop.today - 30,
        )
    )
    percent = draft.rng.choice((75, 80, 90, 60, 50))
    wanted = max(product["floor"], product["price"] * percent // 100)
    if wanted >= product["price"]:
        raise LookupError("at its floor")
    if percent < 70:
        wanted = product["price"] * percent // 100
    price = show(wanted)
    draft.slots |= {"item": product["item"], "price": price}
    first = price
    if draft.complicated("changed_mind", if_=percent >= 70 and wanted + 10 < product["price"]):
        first = show(wanted + 10)
    draft.open_with(item=product["item"], price=first)
    sku = _looked_up(draft, product["item"], product["sku"])
    draft.call("get_price", sku=sku)
    if percent < 70:
        draft.call("policy_lookup", topic="price")
        draft.forbidden.append("propose_price_change")
        draft.consulted.append(("policy_lookup",))
        draft.tell_words("step", "lowest_step")
        draft.say("too_far")
        return
    why = "the merchant asked for it"
    if first != price:
        draft.tries("propose_price_change", sku=sku, price=first, reason=why)
        draft.say("ask", slots=draft.phrases.slots["price"])
    draft.call(
        "propose_price_change", before=draft.before_write(), sku=sku, price=price, reason=why
    )
    draft.tell("price", price)
    draft.say("repriced", price=price)


def _backorder(draft: Draft) -> None:
    line = _line(draft, f"{_PENDING} AND lines.sku IN (SELECT sku FROM inbound)")
    draft.open_with("order_id", "zip", item=line["item"])
    _identified(draft, line)
    result = draft.call(
        "backorder", before=draft.before_write(), order_id=line["order_id"], line=line["line"]
    )
    draft.tell("arrival", result["arrives"])
    draft.say("waits", day=result["arrives"])


def _substitution(draft: Draft) -> None:
    line = _line(draft, _PENDING)
    draft.open_with("order_id", "zip", item=line["item"])
    _identified(draft, line)
    sku = _looked_up(draft, line["item"], line["sku"])
    offered = draft.call("find_substitutes", sku=sku)["substitutes"]
    if not offered:
        raise LookupError("nothing instead")
    result = draft.call(
        "substitute_line", before=draft.before_write(), order_id=line["order_id"], line=line["line"],
        sku=offered[0].split()[0],
    )  # fmt: skip
    draft.tell("item", result["item"])
    draft.say("replaced", item=result["item"])


def _split_shipment(draft: Draft) -> None:
    line = _line(
        draft,
        f"{_PENDING} AND lines.sku IN (SELECT sku FROM inbound) AND (SELECT COUNT(*) FROM lines AS l "
        "WHERE l.order_id = lines.order_id) > 1",
    )
    draft.open_with("order_id", "zip", item=line["item"])
    _identified(draft, line)
    waits = draft.call(
        "backorder", before=draft.before_write(), order_id=line["order_id"], line=line["line"]
    )
    draft.call("split_shipment", order_id=line["order_id"])
    draft.tell("today", show_day(draft.shop.today), or_="today")
    draft.tell("later", waits["arrives"])
    draft.say("split", day=waits["arrives"])


def _fraud_hold(draft: Draft) -> None:
    order = draft.rng.choice(
        draft.before.all("SELECT id, customer_id FROM orders WHERE hold IS NULL ORDER BY id")
    )
    draft.slots["order_id"] = order["id"]
    draft.open_with(order_id=order["id"])
    result = draft.call("get_risk_assessment", order_id=order["id"])
    draft.consulted.append(("get_risk_assessment",))
    draft.tell("score", f"{result['score']}")
    if result["advice"] == "hold":
        draft.call("hold_order", order_id=order["id"], reason="risk")
        draft.tell_words("held", "held", "not_held")
        draft.say("held", score=result["score"])
    else:
        draft.forbidden.append("hold_order")
        draft.say("no_risk", score=result["score"])


def _escalation(draft: Draft) -> None:
    draft.open_with()
    draft.call("escalate_to_human", reason="the customer asks for a person")


def _looked_up(draft: Draft, item: str, sku: str) -> str:
    """Find an item by its name, like an agent; if the search misses it there is no scenario."""
    hits = draft.call("search_products", query=item)["found"]
    if not any(row.split()[0] == sku for row in hits):
        raise LookupError(item)
    return sku


def _cents(row: str) -> int:
    """The price at the end of 'P21 oak vase 45.50'."""
    return int(row.split()[-1].replace(".", ""))


WRITERS: dict[str, tuple[str, Callable[[Draft], None]]] = {
    "return": ("returns", _return),
    "exchange": ("returns", _exchange),
    "damage_claim": ("returns", _damage_claim),
    "cross_sell": ("sales", _cross_sell),
    "price_match": ("sales", _price_match),
    "promotion": ("sales", _promotion),
    "markdown": ("pricing", _markdown),
    "backorder": ("fulfilment", _backorder),
    "substitution": ("fulfilment", _substitution),
    "split_shipment": ("fulfilment", _split_shipment),
    "fraud_hold": ("risk", _fraud_hold),
    "escalation": ("service", _escalation),
}
"""Each intent with its agent and its writer."""


def role_of(graph: str) -> Role:
    """The role that a graph's agent acts for."""
    roles: dict[str, Role] = {"pricing": "merchant", "risk": "staff"}
    return roles.get(graph, "customer")
