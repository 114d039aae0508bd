"""What customers say and what things are called, one YAML file a split; no two splits share a template."""

import functools
import random
import re
from collections.abc import Iterator
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

Split = Literal["train", "development", "held_out"]
"""`train` teaches, `development` is looked at while tuning, `held_out` is only measured."""

Slot = Literal["order_id", "zip", "street", "item", "code", "photo", "price", "budget"]


class Wording(BaseModel):
    """One split's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    greetings: tuple[str, ...]
    openings: dict[str, tuple[str, ...]]
    """Requests by intent, with places for values: `refund the {item}`."""
    gives: dict[Slot, tuple[str, ...]]
    """How a value is given: `My zip is {}.`; just so where nothing is said."""
    names: dict[str, str]
    """Words by kind, separated by spaces."""
    gists: dict[str, tuple[str, ...]] = {}
    asides: tuple[str, ...] = ()
    rambling: str = ""
    pushback: tuple[str, ...] = ()
    """What a customer says who does not take no for an answer."""
    injected: tuple[str, ...] = ()
    """Instructions that a customer has no business giving."""

    def request(self, rng: random.Random, intent: str) -> str:
        """A first message's request, values still open. Where there are gists, many ramble, drop a word or
        say something beside the point: whoever learns from them has to look for what matters."""
        if intent not in self.gists:
            return expand(rng, rng.choice(self.openings[intent]))
        if rng.random() < 0.35:
            return self.ramble(rng, expand(rng, rng.choice(self.gists[intent])))
        said = expand(rng, rng.choice(self.openings[intent]))
        words = said.split()
        if rng.random() < 0.2:
            loose = [place for place, word in enumerate(words) if "{" not in word]
            words.pop(rng.choice(loose))
        parts = [" ".join(words)]
        if rng.random() < 0.3:
            parts.insert(rng.randint(0, 1), expand(rng, rng.choice(self.asides)))
        return " ".join(parts)

    def give(self, rng: random.Random, slot: Slot) -> str:
        """How a customer gives a value; where there are gists, many do so in no template."""
        if self.gists and rng.random() < 0.35:
            return self.ramble(rng, "{}")
        return expand(rng, rng.choice(self.gives[slot]))

    def ramble(self, rng: random.Random, around: str) -> str:
        """`around` amid words that mean nothing."""
        idle = self.rambling.split()
        before = [rng.choice(idle) for _ in range(rng.randint(0, 3))]
        after = [rng.choice(idle) for _ in range(rng.randint(0, 4))]
        text = " ".join([*before, around, *after])
        return text[:1].upper() + text[1:] + rng.choice((".", ".", "", "!"))


def expand(rng: random.Random, template: str) -> str:
    """`[where|when] is it?` -> `when is it?`; one choice for each bracket, innermost first."""
    while (found := _CHOICE.search(template)) is not None:
        chosen = rng.choice(found[1].split("|"))
        template = template[: found.start()] + chosen + template[found.end() :]
    return " ".join(template.split()).replace(" ,", ",").replace(" ?", "?").replace(" .", ".")


def expansions(template: str) -> Iterator[str]:
    """Everything that `expand` can make of a template."""
    found = _CHOICE.search(template)
    if found is None:
        yield " ".join(template.split())
        return
    for chosen in found[1].split("|"):
        yield from expansions(template[: found.start()] + chosen + template[found.end() :])


_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@functools.cache
def wording(split: Split) -> Wording:
    """A split's words. Source: `tools/wording/<split>.yaml`."""
    said, more = (
        yaml.safe_load(
            resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        )
        for name in (split, f"more_{split}")
    )
    openings = said.pop("openings") | more.pop("openings")
    return Wording.model_validate({**said, **more, "openings": openings})
