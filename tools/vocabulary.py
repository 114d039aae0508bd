"""Names of people, items, streets and carriers, in two halves that share no entry."""

import random
from typing import Literal

Split = Literal["train", "held_out"]

_FIRST = {
    "train": "Ana Ben Carla Deepak Elena Farid Grace Hugo Ines Jonas Kira Liam Mona Nils Olga Pavel "
    "Quinn Rosa Sam Tara Uma Viktor Wanda Yusuf Zoe Aaron Bella Chen Dora Emil",
    "held_out": "Amir Beth Carlos Dana Erik Fiona Gita Henrik Ivy Jamal Karin Luca Maya Noor Oscar Priya",
}
_ADJECTIVES = {
    "train": "red blue wool steel oak linen smart mini classic trail copper silk green paper rustic "
    "soft travel bamboo glass slim heavy garden city winter cotton leather",
    "held_out": "black cork summer marble velvet grey ocean folding maple white denim vintage",
}
_NOUNS = {
    "train": "mug lamp jacket kettle chair shirt watch backpack bottle tent scarf desk blanket pan "
    "wallet clock vase hat stool rug basket cushion towel mirror",
    "held_out": "bowl coat shelf speaker sofa belt pillow radio bench glove",
}
_STREETS = {
    "train": "Birch Maple Station River Hill Park Church Mill Lake School Garden Bridge Market Forest",
    "held_out": "Harbour Castle Orchard Meadow Tower Valley Spring Abbey",
}
_STREET_KINDS = {"train": "Road Street Lane Avenue", "held_out": "Way Place Close Drive"}
_CODES = {
    "train": "SPRING WINTER HELLO FRIEND EXTRA SAVE BONUS LUCKY",
    "held_out": "AUTUMN WELCOME THANKS PARTY",
}

CARRIERS = ("DHL", "UPS", "FedEx", "DPD")
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def words(
    kind: Literal["first", "adjective", "noun", "street", "street_kind", "code"], split: Split
) -> list[str]:
    """The words of one kind that a split may use."""
    tables = {
        "first": _FIRST,
        "adjective": _ADJECTIVES,
        "noun": _NOUNS,
        "street": _STREETS,
        "street_kind": _STREET_KINDS,
        "code": _CODES,
    }
    return tables[kind][split].split()


def brand(rng: random.Random) -> str:
    """A made-up word such as 'velano': training must not be a matter of known names alone."""
    syllables = rng.choice((2, 2, 3))
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables))
