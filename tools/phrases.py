"""What customers and agents say. Held-out customers word every request in templates of their own."""

import random
from typing import Literal

from stateset_agents.tools.vocabulary import Split

Slot = Literal["order_id", "zip", "street", "item", "code"]

GREETINGS: dict[Split, tuple[str, ...]] = {
    "train": ("", "", "", "Hi, ", "Hello, ", "Hey there, ", "Good morning, "),
    "held_out": ("", "", "Greetings, ", "Dear team, ", "Good evening, "),
}

OPENINGS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "shipping_status": (
            "where is my order?",
            "when does my order arrive?",
            "can you track my order please?",
            "what is the status of my delivery?",
            "I am still waiting for my order.",
            "has my parcel shipped yet?",
            "where is my package now?",
            "could you check when my delivery arrives?",
            "I want to know the status of my order.",
            "my package is late, where is it?",
            "please track my package.",
            "when will it arrive?",
        ),
        "cancel": (
            "please cancel my order.",
            "I want to cancel my order.",
            "can you cancel the order for me?",
            "I changed my mind, cancel it please.",
            "I need to cancel an order.",
            "cancel my order right away.",
            "I ordered by mistake, please cancel.",
            "could you stop my order? I want to cancel.",
            "I no longer need my order, cancel it.",
            "is it possible to cancel my order?",
        ),
        "refund": (
            "I want a refund for the {item}.",
            "the {item} is broken, I want my money back.",
            "please refund the {item}.",
            "can I get a refund for the {item}?",
            "I am not happy with the {item}, refund it please.",
            "the {item} does not work. I need a refund.",
            "I would like my money back for the {item}.",
            "could you refund the {item} to me?",
            "the {item} came damaged, please refund it.",
            "I want to return the {item} and get my money back.",
        ),
        "address_change": (
            "please change the address of my order.",
            "I moved, can you change my shipping address?",
            "I need a new address on my order.",
            "can you send my order to another address?",
            "the address of my order is wrong.",
            "I want to update the delivery address.",
            "please ship it to my new address.",
            "could you change where my order goes? I have a new address.",
            "I gave the wrong address, please change it.",
            "is it possible to update the address?",
        ),
        "price_question": (
            "how much is the {item} with code {code}?",
            "what does the {item} cost with {code}? Is it in stock?",
            "is the {item} in stock? I have the code {code}.",
            "what is the price of the {item} with code {code}?",
            "do you have the {item}? Does {code} work on it?",
            "I have a code {code} for the {item}, what is the price?",
            "can I use {code} for the {item}? How much is it?",
            "price of the {item} with the code {code} please.",
            "does my code {code} work for the {item}?",
            "how many of the {item} are in stock, and what is the price with {code}?",
        ),
    },
    "held_out": {
        "shipping_status": (
            "any idea where the parcel might be?",
            "the delivery should be here by now, what is its status?",
            "tell me when I can expect my package to arrive.",
            "track it for me, would you?",
            "did my order ship, and on which day does it arrive?",
            "still waiting on that parcel, where is it?",
        ),
        "cancel": (
            "kindly cancel what I bought.",
            "cancel everything, I do not need it anymore.",
            "that order must be a mistake, could it be cancelled? Please cancel it.",
            "make sure to cancel this purchase.",
            "let us cancel the whole thing.",
            "would you please go ahead and cancel?",
        ),
        "refund": (
            "my {item} arrived damaged and I expect a refund.",
            "money back for the {item}, please.",
            "that {item} is not working, so refund me.",
            "give me a refund, the {item} is broken.",
            "unhappy with this {item}: how do I get my money back?",
            "a refund for one {item} is what I am after.",
        ),
        "address_change": (
            "we just moved, so the shipping address must change.",
            "deliver to a different address instead.",
            "there is an error in my address, update it please.",
            "new home, new address: could the order be sent there?",
            "my delivery goes to an old address, fix that.",
            "use another address for this order, please.",
        ),
        "price_question": (
            "thinking of the {item}: price with {code}, and is it in stock?",
            "if I use code {code}, how much would one {item} cost?",
            "tell me the cost of your {item} when I enter {code}.",
            "got {code} as a code. Any {item} in stock, and how much?",
            "with {code}, what will a {item} cost me?",
            "my friend gave me {code}, does that code work on a {item}?",
        ),
    },
}

GIVES: dict[Split, dict[Slot, tuple[str, ...]]] = {
    "train": {
        "order_id": (
            "My order is {}.",
            "The order number is {}.",
            "It is order {}.",
            "Order {}.",
            "{}.",
        ),
        "zip": ("My zip is {}.", "The zip code is {}.", "Zip {}.", "{}."),
        "street": ("The new address is {}.", "Please use {}.", "It is {} now.", "{}."),
        "item": ("The {}.", "It is about the {}."),
        "code": ("The code is {}.", "{}."),
    },
    "held_out": {
        "order_id": ("That would be {}.", "Number {} it was.", "You can find it under {}."),
        "zip": ("Postal code {} here.", "We live at zip {}.", "{} should be on file."),
        "street": ("Send it to {}.", "From now on {}.", "We are at {} these days."),
        "item": ("I mean the {}.", "{} it is."),
        "code": ("It says {}.", "My code reads {}."),
    },
}

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
    "before_write": ("I will do that now.", "One moment please.", "Let me do that.", ""),
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

_RAMBLING = ["well", "so", "anyway", "actually", "please", "thanks", "oh", "hmm", "yes", "no", "maybe", "just", "really", "very", "still", "again", "now", "then", "today", "yesterday", "tomorrow", "morning", "evening", "week", "month", "year", "time", "day", "night", "house", "work", "office", "car", "train", "dog", "cat", "kid", "wife", "husband", "mother", "father", "friend", "neighbour", "boss", "phone", "screen", "letter", "box", "bag", "paper", "pen", "green", "small", "big", "old", "young", "nice", "odd", "quick", "slow", "early", "late", "good", "bad", "happy", "tired", "busy", "ready", "sure", "right", "left", "up", "down", "here", "there", "somewhere", "near", "far", "under", "over", "with", "without", "about", "from", "into", "before", "after", "while", "because", "if", "but", "and", "or", "as", "like", "than", "when", "who", "how", "much", "many", "some", "any", "every", "other", "same", "think", "know", "see", "hear", "feel", "hope", "guess", "need", "get", "got", "take", "took", "put", "make", "made", "come", "came", "go", "went", "say", "said", "tell", "told", "call", "keep", "kept", "look", "looked", "find", "found", "hold", "held", "wait", "waited", "read", "wrote", "sent", "bring", "brought", "buy", "bought"]


def ramble(rng: random.Random, around: str) -> str:
    """`around` amid words that mean nothing: training customers do not all speak in templates."""
    before = " ".join(rng.choice(_RAMBLING) for _ in range(rng.randint(0, 3)))
    after = " ".join(rng.choice(_RAMBLING) for _ in range(rng.randint(0, 4)))
    text = " ".join(part for part in (before, around, after) if part)
    return text[:1].upper() + text[1:] + rng.choice((".", ".", "", "!"))


GISTS: dict[str, tuple[str, ...]] = {
    "shipping_status": (
        "where is it", "where is my package", "track my parcel", "track it", "when does it arrive",
        "delivery status", "status of my order", "has it shipped", "when will it come", "expect my delivery",
        "still waiting for my parcel", "on which day",
    ),
    "cancel": (
        "cancel", "cancel it", "cancel my order", "want to cancel", "cancel everything", "stop the order cancel",
        "ordered by mistake cancel", "do not need it cancel", "please cancel",
    ),
    "refund": (
        "refund the {item}", "money back for the {item}", "{item} is broken refund", "a refund for one {item}",
        "my {item} arrived damaged money back", "return my {item}", "{item} not working refund me",
        "unhappy with this {item} money back",
    ),
    "address_change": (
        "new address", "change the address", "another address", "wrong address", "we moved", "update my address",
        "send it to a different address", "address must change", "deliver somewhere else new address",
    ),
    "price_question": (
        "how much is the {item} code {code}", "price of your {item} with {code}", "{item} in stock with {code}",
        "what would one {item} cost {code}", "code {code} on the {item} price", "{code} for this {item} how much",
        "cost of a {item} if I use {code}", "with {code} my {item} in stock", "any {item} in stock code {code}",
    ),
}  # fmt: skip
"""The bare requests that training customers also make, amid rambling."""
