"""The shop's agents: the duty of each, and its tools."""

from stateset_agents.graphs.agent import Domain
from stateset_agents.tools.toolset import SERVICE_PROMPT, SERVICE_TOOLS, choose

_ALWAYS = ("verify_identity", "policy_lookup", "escalate_to_human")

SERVICE = Domain(
    name="service",
    duty="You answer for orders: status, cancellation, address, refund, prices.",
    tools=SERVICE_TOOLS,
    system_prompt=SERVICE_PROMPT,
)
SALES = Domain(
    name="sales",
    duty="You find what fits the customer and their budget, quote it, and take the order.",
    tools=choose(
        *_ALWAYS, "search_products", "find_products", "get_product", "compare", "recommend", "check_compatibility",
        "check_stock", "quote_delivery", "validate_promotion", "quote_order", "reserve", "place_order",
        "get_order", "apply_promotion", "price_match",
    ),
)  # fmt: skip
RETURNS = Domain(
    name="returns",
    duty="You take goods back: returns, exchanges, refunds, and claims with a photo.",
    tools=choose(
        *_ALWAYS, "get_order", "check_return_eligibility", "create_return", "issue_refund",
        "find_substitutes", "exchange", "inspect_photo", "attach_claim_photo", "search_products",
    ),
)  # fmt: skip
FULFILMENT = Domain(
    name="fulfilment",
    duty="You get orders to their customers: what is missing waits, is replaced, or follows later.",
    tools=choose(
        *_ALWAYS, "get_order", "track_shipment", "check_stock", "quote_delivery", "find_substitutes",
        "substitute_line", "backorder", "split_shipment", "quote_shipping", "change_shipping_method",
        "change_shipping_address", "cancel_order", "update_address",
    ),
)  # fmt: skip
PRICING = Domain(
    name="pricing",
    duty="You propose prices and promotions to the merchant, within margin, fairness and age of stock.",
    tools=choose(
        "search_products", "find_products", "get_product", "get_price", "check_stock", "compare", "policy_lookup",
        "propose_price_change", "create_promotion", "escalate_to_human",
    ),
    role="merchant",
)  # fmt: skip
RISK = Domain(
    name="risk",
    duty="You look at orders that may be fraud, hold them, and leave the decision to a person.",
    tools=choose(
        "get_risk_assessment", "flag_fraud", "hold_order", "release_hold", "create_ticket", "policy_lookup",
        "escalate_to_human",
    ),
    role="staff",
)  # fmt: skip

DOMAINS = {d.name: d for d in (SERVICE, SALES, RETURNS, FULFILMENT, PRICING, RISK)}
