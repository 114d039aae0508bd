"""The tools of the shop, and those of each agent."""

import functools
from collections.abc import Mapping
from importlib import resources

from stateset_agents.tools.commerce import (
    catalogue,
    customers,
    inventory,
    orders,
    pricing,
    returns,
    risk,
)
from stateset_agents.tools.rules import Rule, Signature, parse_rules
from stateset_agents.tools.tool import Tool

ALL_TOOLS: tuple[Tool, ...] = (
    *customers.TOOLS,
    *orders.TOOLS,
    *inventory.TOOLS,
    *pricing.TOOLS,
    *returns.TOOLS,
    *catalogue.TOOLS,
    *risk.TOOLS,
)

SIGNATURES: Mapping[str, Signature] = {
    tool.name: Signature(
        arguments=frozenset(tool.arguments.model_fields),
        quoted=tool.quote is not None,
        writes=tool.confirm,
    )
    for tool in ALL_TOOLS
}
"""What a rule can use of each tool's calls."""


@functools.cache
def shop_rules() -> tuple[Rule, ...]:
    """The rules that ship with the shop, in the order in which they are checked."""
    text = resources.files("stateset_agents.tools").joinpath("rules.yaml").read_text()
    return parse_rules(text, where="rules.yaml", tools=SIGNATURES)


def choose(*names: str) -> tuple[Tool, ...]:
    """Tools by name, in that order."""
    known = {tool.name: tool for tool in ALL_TOOLS}
    return tuple(known[name] for name in names)


SERVICE_TOOLS: tuple[Tool, ...] = choose(
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
"""The tools that the seed policy was trained with. Frozen: the shop may get more tools, this set does not."""


SERVICE_PROMPT = (
    "You are the service agent of a shop. Verify the customer first, follow the rules, "
    "and say only what a tool told you."
)
