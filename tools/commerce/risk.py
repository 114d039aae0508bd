"""Tools about risk and about people: signals of fraud, tickets, and a person who takes over."""

from typing import Any, Literal

from stateset_agents.tools.tool import Arguments, Desk, Text, Tool, ToolError, Word


class Order(Arguments):
    order_id: Word


class Flag(Arguments):
    order_id: Word
    kind: Literal["account_takeover", "refund_abuse", "stolen_card"]


class Reason(Arguments):
    reason: Text


class Ticket(Arguments):
    kind: Literal["complaint", "question", "callback"]
    reason: Text


class Topic(Arguments):
    topic: Word


def _owner(desk: Desk, order_id: str) -> str:
    order = desk.shop.first("SELECT customer_id FROM orders WHERE id = ?", order_id)
    if order is None:
        raise ToolError("not_found", "use an order of the shop")
    return str(order["customer_id"])


def get_risk_assessment(desk: Desk, call: Order) -> dict[str, Any]:
    """The highest signal of the customer, what raised it, and what it calls for."""
    owner = _owner(desk, call.order_id)
    signals = desk.shop.all(
        "SELECT kind, score FROM signals WHERE customer_id = ? ORDER BY score DESC, id", owner
    )
    score = max((int(row["score"]) for row in signals), default=0)
    advice = "hold" if score >= 70 else "look" if score >= 40 else "none"
    return {"score": score, "signals": [row["kind"] for row in signals], "advice": advice}


def flag_fraud(desk: Desk, call: Flag) -> dict[str, Any]:
    owner = _owner(desk, call.order_id)
    id = desk.shop.next_id("G")
    desk.shop.insert(
        "signals", id=id, customer_id=owner, order_id=call.order_id, kind=call.kind, score=80,
        day=desk.shop.today,
    )  # fmt: skip
    return {"signal": id}


def escalate_to_human(desk: Desk, call: Reason) -> dict[str, Any]:
    return {"ticket": _ticket(desk, "escalation", call.reason)}


def create_ticket(desk: Desk, call: Ticket) -> dict[str, Any]:
    return {"ticket": _ticket(desk, call.kind, call.reason)}


def _ticket(desk: Desk, kind: str, reason: str) -> str:
    id = desk.shop.next_id("T")
    desk.shop.insert(
        "tickets", id=id, customer_id=desk.session["customer"] or None, reason=reason, kind=kind
    )
    return id


def policy_lookup(desk: Desk, call: Topic) -> dict[str, Any]:
    """The text of the rules in force that share a word with the topic."""
    wanted = set(call.topic.lower().split())
    return {
        rule.id: rule.prompt
        for rule in desk.rules
        if wanted
        & set(f"{rule.id} {rule.prompt}".lower().replace("-", " ").replace(".", "").split())
    }


TOOLS = (
    Tool(
        name="get_risk_assessment",
        description="How risky an order is, and what that calls for.",
        arguments=Order,
        run=get_risk_assessment,
    ),
    Tool(
        name="flag_fraud",
        description="Record a sign of fraud on an order.",
        arguments=Flag,
        run=flag_fraud,
    ),
    Tool(
        name="escalate_to_human",
        description="Hand the conversation to a person; ends it.",
        arguments=Reason,
        run=escalate_to_human,
    ),
    Tool(
        name="create_ticket",
        description="Leave something for a person to look at later.",
        arguments=Ticket,
        run=create_ticket,
    ),
    Tool(
        name="policy_lookup",
        description="The shop's rules about a topic.",
        arguments=Topic,
        run=policy_lookup,
    ),
)
