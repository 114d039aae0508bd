"""What customers and agents say, a folder a language: one file a split, and no two of them share a template.

`train.yaml`, `development.yaml` and `held_out.yaml` are customers' words, `agent.yaml` is what agents say in
the demonstrations and by which words they are understood.
"""

import functools
import random
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from stateset_agents.errors import BadInput

Split = Literal["train", "development", "held_out"]
"""`train` teaches, `development` is looked at while tuning, `held_out` is only measured."""

Locale = Literal["en", "de", "es", "fr", "pt"]
"""The language of a conversation; the shop itself is kept in English."""

Slot = Literal["order_id", "zip", "street", "item", "code", "photo", "price", "budget"]


class Wording(BaseModel):
    """One split's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    greetings: tuple[str, ...]
    openings: dict[str, tuple[str, ...]]
    """Requests by intent, with places for values: `refund the {item}`."""
    gives: dict[Slot, tuple[str, ...]]
    """How a value is given: `My zip is {}.`; just so where nothing is said."""
    names: dict[str, str] = {}
    """Words by kind, separated by spaces; those of the shop, so in English alone."""
    gists: dict[str, tuple[str, ...]] = {}
    asides: tuple[str, ...] = ()
    rambling: str = ""
    pushback: tuple[str, ...] = ()
    """What a customer says who does not take no for an answer."""
    injected: tuple[str, ...] = ()
    """Instructions that a customer has no business giving."""
    false_claims: tuple[str, ...] = ()
    """What a colleague is said to have promised."""
    probing: tuple[str, ...] = ()
    """Questions about somebody else's order, with a place for its number."""

    def request(self, rng: random.Random, intent: str) -> str:
        """A first message's request, values still open. Where there are gists, many ramble, drop a word or
        say something beside the point: whoever learns from them has to look for what matters."""
        if intent not in self.gists:
            return expand(rng, rng.choice(self.openings[intent]))
        if rng.random() < 0.35:
            return self.ramble(rng, expand(rng, rng.choice(self.gists[intent])))
        text = expand(rng, rng.choice(self.openings[intent]))
        words = text.split()
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
    while (choice := _CHOICE.search(template)) is not None:
        chosen = rng.choice(choice[1].split("|"))
        template = template[: choice.start()] + chosen + template[choice.end() :]
    return " ".join(template.split()).replace(" ,", ",").replace(" ?", "?").replace(" .", ".")


def expansions(template: str) -> Iterator[str]:
    """Everything that `expand` can make of a template."""
    choice = _CHOICE.search(template)
    if choice is None:
        yield " ".join(template.split())
        return
    for chosen in choice[1].split("|"):
        yield from expansions(template[: choice.start()] + chosen + template[choice.end() :])


_CHOICE = re.compile(r"\[([^\[\]]*)\]")


_DAY = re.compile(r"(\d{1,2}) ([A-Z][a-z]+)")
_AMOUNT = re.compile(r"\d+\.\d\d")


class Phrases(BaseModel):
    """How agents speak one language in the demonstrations, and how they are understood."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    say: dict[str, tuple[str, ...]]
    """Sentences by what they tell, with places for values."""
    slots: dict[Slot, str]
    """What an agent calls the values that it asks for."""
    and_: str = Field(alias="and")
    asks_for: dict[Slot, tuple[str, ...]]
    """Words by which a customer understands what is asked for."""
    unknown: str
    words: dict[str, tuple[str, ...]]
    """Expressions that say a thing, by its name; the first is what demonstrations say."""
    months: tuple[str, ...]
    dates: tuple[str, ...]
    comma: bool = True
    """Whether an amount is written 12,50."""

    def readings(self, value: str) -> tuple[str, ...]:
        """A value of a tool as it may be said, as demonstrations say it first; the tool's own way is one.

        >>> phrases("de").readings("20 July")[:1], phrases("de").readings("12.50")[:1]
        (('20. Juli',), ('12,50',))
        """
        own: list[str] = []
        if (day := _DAY.fullmatch(value)) is not None:
            month = self.months[phrases("en").months.index(day[2])]
            own = [form.format(day=day[1], month=month) for form in self.dates]
        elif _AMOUNT.fullmatch(value) and self.comma:
            own = [value.replace(".", ",")]
        return tuple(dict.fromkeys([*own, value]))

    def spoken(self, value: object) -> object:
        return self.readings(value)[0] if isinstance(value, str) else value


def _file(locale: Locale, name: str) -> Any:
    place = resources.files(__name__).joinpath(locale, f"{name}.yaml")
    return yaml.safe_load(place.read_text(encoding="utf-8"))


def locales_of(names: Sequence[str] | None) -> tuple[Locale, ...]:
    """Languages by name, English where none is named. Raises BadInput for one that there is not."""
    known: tuple[Locale, ...] = get_args(Locale)
    for name in names or ():
        if name not in known:
            raise BadInput(f"Expected a language of {', '.join(known)}, found {name!r}.")
    return tuple(name for name in known if name in names) if names else ("en",)


@functools.lru_cache(maxsize=64)
def wording(split: Split, locale: Locale = "en") -> Wording:
    """Customers' words. Source: `tools/wording/<locale>/<split>.yaml`."""
    return Wording.model_validate(_file(locale, split))


@functools.lru_cache(maxsize=64)
def phrases(locale: Locale = "en") -> Phrases:
    """Agents' words. Source: `tools/wording/<locale>/agent.yaml`."""
    return Phrases.model_validate(_file(locale, "agent"))
