"""Which tools exist, and which of them an agent is offered."""

from stateset_agents.tools import catalogue, customers, orders, returns
from stateset_agents.tools.rules import shop_rules
from stateset_agents.tools.shop import Shop
from stateset_agents.tools.tool import Arguments, Session, Tool


class Topic(Arguments):
    topic: str


def policy_lookup(shop: Shop, session: Session, call: Topic) -> dict[str, str]:
    """The text of the rules that share a word with the topic."""
    wanted = set(call.topic.lower().split())
    return {
        rule.id: rule.told
        for rule in shop_rules()
        if wanted & set(f"{rule.id} {rule.told}".lower().replace("-", " ").replace(".", "").split())
    }


ALL_TOOLS: tuple[Tool, ...] = (
    *customers.TOOLS,
    *orders.TOOLS,
    *returns.TOOLS,
    *catalogue.TOOLS,
    Tool(
        name="policy_lookup",
        description="The shop's rules about a topic.",
        arguments=Topic,
        run=policy_lookup,
    ),
)

_SERVICE = (
    "verify_identity",
    "get_order",
    "track_shipment",
    "cancel_order",
    "change_shipping_address",
    "check_return_eligibility",
    "issue_refund",
    "search_products",
    "quote_cart",
    "escalate_to_human",
)

SERVICE_TOOLS: tuple[Tool, ...] = tuple(
    next(tool for tool in ALL_TOOLS if tool.name == name) for name in _SERVICE
)
"""What the seed policy was raised with. Frozen: the shop may grow, this set does not."""
