"""What agents of the demonstrations say, and how customers understand them."""

from stateset_agents.tools.wording import Slot

ASKS_FOR: dict[Slot, tuple[str, ...]] = {
    "order_id": ("order number", "order id", "which order"),
    "zip": ("zip", "postal code", "postcode"),
    "street": ("new address", "which address", "street"),
    "item": ("which item", "which product"),
    "code": ("which code", "promotion code"),
    "photo": ("which photo", "a photo"),
    "price": ("which price",),
    "budget": ("budget",),
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
    "no": ("I cannot do that.",),
    "not_returnable": ("I cannot take it back, it is {reason}.",),
    "returned": ("Your return {label} is open, the label is on its way.",),
    "exchanged": ("Done, your new order is {order}.",),
    "photo_wrong": ("The photo shows another product, so I cannot refund it.",),
    "nothing_fits": ("I found nothing that fits within that budget.",),
    "ordered": ("Done, {order} is placed, {total} in all.",),
    "matched": ("Done, {amount} comes back to you.",),
    "code_over": ("The code is not valid any more.",),
    "code_applied": ("The code counts now, {amount} comes back to you.",),
    "too_far": ("A price may not go below 70 percent of what it was in one step.",),
    "repriced": ("Done, it costs {price} now.",),
    "waits": ("It waits for stock and arrives with us on {day}.",),
    "replaced": ("You get the {item} instead.",),
    "split": ("The rest leaves today, the other line follows on {day}.",),
    "held": ("The risk score is {score}, the order is on hold.",),
    "no_risk": ("The risk score is {score}, I leave the order as it is.",),
    "quote_expired": ("The code is expired, it costs {total}, we have {stock} in stock.",),
}

SLOT_NAMES: dict[Slot, str] = {
    "order_id": "the order number",
    "zip": "the zip code",
    "street": "the new address",
    "item": "the item",
    "code": "the code",
    "photo": "the photo",
    "price": "the price",
    "budget": "the budget",
}
