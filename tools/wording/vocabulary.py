"""Names of people, items, streets and carriers: no two splits share one."""

import random
from typing import Literal

from stateset_agents.tools.wording import Split, wording

NameKind = Literal["first", "adjective", "noun", "street", "street_kind", "code"]

CARRIERS = ("DHL", "UPS", "FedEx", "DPD")
_ONSETS = (
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm sn "
    "sp st str sw th tr wh"
).split()
_VOWELS = "a a e e i i o o u ai ea ee ie oa oo ou".split()
_CODAS = [*[""] * 8, *"b ck d ft g l ld ll lt m n nd ng nt p r rd rk rt s ss st t th x".split()]


def words(kind: NameKind, split: Split) -> list[str]:
    """The words of one kind that a split may use."""
    return wording(split).names[kind].split()


def made_up(rng: random.Random) -> str:
    """A word that nobody has seen, such as 'stoalet'."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2)))
    )


def name(rng: random.Random, split: Split, kind: NameKind) -> str:
    """A word for a thing. In training half of them are made up, so that an agent has to repeat what it
    was told instead of knowing a list."""
    known = rng.choice(words(kind, split))
    if split != "train" or rng.random() < 0.5:
        return known
    invented = made_up(rng)
    return (
        invented.upper() if known.isupper() else invented.title() if known.istitle() else invented
    )
