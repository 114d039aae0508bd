"""Generated scenarios are solvable, hard to solve by accident, and held-out means other words."""

import itertools
import random
import re

import pytest

from stateset_agents.scenario import Scenario
from stateset_agents.tools.demonstrations import FLAWS, demonstrate
from stateset_agents.tools.phrases import GISTS, GIVES, GREETINGS, OPENINGS
from stateset_agents.tools.replies import reply
from stateset_agents.tools.scenarios import INTENTS, mutants, scenarios, score_acts
from stateset_agents.tools.vocabulary import Split, words


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_plan_succeeds_and_every_mutant_fails(split: Split) -> None:
    for scenario in itertools.islice(scenarios(seed=77, split=split), 150):
        assert score_acts(scenario, scenario.plan).success, scenario.id
        for name, acts in mutants(scenario).items():
            assert not score_acts(scenario, acts).success, (scenario.id, name)


def test_the_same_seed_gives_the_same_scenarios() -> None:
    first = list(itertools.islice(scenarios(seed=5, split="train"), 40))
    assert first == list(itertools.islice(scenarios(seed=5, split="train"), 40))
    assert {scenario.intent for scenario in first} == set(INTENTS)


def phrases(split: Split) -> set[str]:
    said = [template for intent in OPENINGS[split].values() for template in intent]
    said += [template for forms in GIVES[split].values() for template in forms]
    said += GREETINGS[split]
    if split == "train":
        said += [gist for intent in GISTS.values() for gist in intent]
    return {" ".join(re.findall(r"[a-z{}]+", text.lower())) for text in said}


def ngrams(texts: set[str], n: int) -> set[tuple[str, ...]]:
    return {
        tuple(tokens[i : i + n])
        for tokens in (text.split() for text in texts)
        for i in range(len(tokens) - n + 1)
    }


def test_held_out_customers_word_their_requests_differently() -> None:
    """No template is shared, and few runs of four words are."""
    train, held_out = phrases("train") - {""}, phrases("held_out") - {""}
    assert not (train & held_out)
    shared = ngrams(held_out, 4) & ngrams(train, 4)
    assert len(shared) / len(ngrams(held_out, 4)) <= 0.08, shared


@pytest.mark.parametrize("kind", ["first", "adjective", "noun", "street", "street_kind", "code"])
def test_held_out_names_are_new(kind: str) -> None:
    assert not set(words(kind, "train")) & set(words(kind, "held_out"))  # type: ignore[arg-type]


def test_demonstrations_are_flawed_as_published() -> None:
    rng, made = random.Random(0), []
    for scenario in itertools.islice(scenarios(seed=9, split="train"), 500):
        made.append(demonstrate(scenario, rng))
    for intent, flaws in FLAWS.items():
        assert max(flaws.values()) <= 0.3
        mine = [d for d in made if d.intent == intent]
        for flaw in flaws:
            share = sum(d.flaw == flaw for d in mine) / len(mine)
            assert share <= 0.4
    assert 0.3 < sum(d.flaw is not None for d in made) / len(made) < 0.6


def test_a_customer_answers_what_is_asked_and_leaves_when_nothing_is(
    held_out: list[Scenario],
) -> None:
    customer = next(s.customer for s in held_out if "zip" in s.customer.slots)
    asked = reply(customer, "What is the zip code?")
    assert asked is not None
    assert customer.slots["zip"] in asked
    assert reply(customer, "What is your favourite colour?") == "I do not know."
    assert reply(customer, "Done, bye.") is None
    assert reply(customer, "") == customer.opening
