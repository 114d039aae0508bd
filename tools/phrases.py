"""What agents of the demonstrations say, and how customers understand them."""

from stateset_agents.tools.wording import Slot

ASKS_FOR: dict[Slot, tuple[str, ...]] = {
    "order_id": ("order number", "order id", "which order"),
    "zip": ("zip", "postal code", "postcode"),
    "street": ("new address", "which address", "street"),
    "item": ("which item", "which product"),
    "code": ("which code", "promotion code"),
}
"""Words by which a customer understands what the agent asks for."""

AGENT: dict[str, tuple[str, ...]] = {
    "ask": ("What is {slots}?", "Sure. What is {slots}?", "Happy to help. What is {slots}?"),
    "before_write": ("One moment please.", ""),
    "shipping_arrives": ("It is with {carrier} and arrives on {day}.",),
    "shipping_arrived": ("It was delivered by {carrier} on {day}.",),
    "shipping_pending": ("It has not shipped yet.",),
    "cancelled": ("Your order is cancelled and {amount} comes back to you.",),
    "cancel_late": ("I cannot cancel it, it is already {status}.",),
    "refunded": ("Done, {amount} is refunded to you.",),
    "refund_late": ("I cannot refund it, it was {reason}.",),
    "refund_early": ("I cannot refund it, it is {reason}.",),
    "address_done": ("Done, it ships to {street}.",),
    "address_late": ("I cannot change it, it is already {status}.",),
    "quote_valid": ("It costs {total} with the code, we have {stock} in stock.",),
    "quote_expired": ("The code is expired, it costs {total}, we have {stock} in stock.",),
}

SLOT_NAMES: dict[Slot, str] = {
    "order_id": "the order number",
    "zip": "the zip code",
    "street": "the new address",
    "item": "the item",
    "code": "the code",
}
