"""What customers say and what things are called, one YAML file a split; no two splits share a template."""

import functools
import random
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

Split = Literal["train", "development", "held_out"]
"""`train` teaches, `development` is looked at while tuning, `held_out` is only measured."""

Slot = Literal["order_id", "zip", "street", "item", "code"]


class Wording(BaseModel):
    """One split's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    greetings: tuple[str, ...]
    openings: dict[str, tuple[str, ...]]
    """Requests by intent, with places for values: `refund the {item}`."""
    gives: dict[Slot, tuple[str, ...]]
    """How a value is given: `My zip is {}.`"""
    names: dict[str, str]
    """Words by kind, separated by spaces."""
    gists: dict[str, tuple[str, ...]] = {}
    rambling: str = ""

    def request(self, rng: random.Random, intent: str) -> str:
        """A first message's request, values still open; where there are gists, every other one rambles."""
        if self.gists and rng.random() < 0.5:
            return self.ramble(rng, rng.choice(self.gists[intent]))
        return rng.choice(self.openings[intent])

    def give(self, rng: random.Random, slot: Slot) -> str:
        """How a customer gives a value; where there are gists, every other one does so in no template."""
        if self.gists and rng.random() < 0.5:
            return self.ramble(rng, "{}")
        return rng.choice(self.gives[slot])

    def ramble(self, rng: random.Random, around: str) -> str:
        """`around` amid words that mean nothing."""
        idle = self.rambling.split()
        before = [rng.choice(idle) for _ in range(rng.randint(0, 3))]
        after = [rng.choice(idle) for _ in range(rng.randint(0, 4))]
        text = " ".join([*before, around, *after])
        return text[:1].upper() + text[1:] + rng.choice((".", ".", "", "!"))


@functools.cache
def wording(split: Split) -> Wording:
    """A split's words. Source: `tools/wording/<split>.yaml`."""
    text = resources.files(__name__).joinpath(f"{split}.yaml").read_text(encoding="utf-8")
    return Wording.model_validate(yaml.safe_load(text))
