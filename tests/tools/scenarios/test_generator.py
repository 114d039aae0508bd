"""Generated scenarios are solvable, hard to solve by accident, and held-out means other words."""

import itertools
import random
import re
from typing import get_args

import pytest

from stateset_agents.scenario import Scenario
from stateset_agents.tools.scenarios.demonstrations import FLAWS, demonstrate
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, INTENTS, scenarios
from stateset_agents.tools.scenarios.mutants import mutants, score_acts
from stateset_agents.tools.scenarios.replies import reply
from stateset_agents.tools.wording import Slot, Split, expansions, wording
from stateset_agents.tools.wording.vocabulary import NameKind, words


@pytest.mark.parametrize("split", get_args(Split))
def test_the_plan_succeeds_and_every_mutant_fails(split: Split) -> None:
    for scenario in itertools.islice(scenarios(seed=77, split=split), 150):
        assert score_acts(scenario, scenario.plan).success, scenario.id
        for name, acts in mutants(scenario).items():
            assert not score_acts(scenario, acts).success, (scenario.id, name)


def test_the_same_seed_gives_the_same_scenarios() -> None:
    first = list(itertools.islice(scenarios(seed=5, split="train"), 40))
    assert first == list(itertools.islice(scenarios(seed=5, split="train"), 40))
    assert {scenario.intent for scenario in first} == set(INTENTS)


def phrases(split: Split, intents: tuple[str, ...] = INTENTS) -> set[str]:
    """What a split's customers say for some intents; what they say for any of them comes with the demo's."""
    words = wording(split)
    own = {intent: words.openings[intent] for intent in intents}
    gists = {intent: forms for intent, forms in words.gists.items() if intent in intents}
    phrases_said, tables = [*words.pushback, *words.injected], [own, gists]
    if intents == INTENTS:
        phrases_said = [*words.greetings, *words.asides]
        tables.append({str(slot): forms for slot, forms in words.gives.items()})
    for table in tables:
        phrases_said += [
            phrases_said
            for forms in table.values()
            for form in forms
            for phrases_said in expansions(form)
        ]
    return {" ".join(re.findall(r"[a-z{}]+", text.lower())) for text in phrases_said} - {""}


def ngrams(texts: set[str], n: int) -> set[tuple[str, ...]]:
    return {
        tuple(tokens[i : i + n])
        for tokens in (text.split() for text in texts)
        for i in range(len(tokens) - n + 1)
    }


@pytest.mark.parametrize("seen", ["train", "development"])
def test_held_out_customers_word_their_requests_differently(seen: Split) -> None:
    """No template is shared, and few runs of four or three words are."""
    newer = tuple(sorted(set(ALL_INTENTS) - set(INTENTS)))
    for intents, four, three in ((INTENTS, 0.05, 0.15), (newer, 0.01, 0.02)):
        known, held_out = phrases(seen, intents), phrases("held_out", intents)
        assert not (known & held_out)
        for length, bound in ((4, four), (3, three)):
            shared = ngrams(held_out, length) & ngrams(known, length)
            assert len(shared) / len(ngrams(held_out, length)) <= bound


def test_every_split_has_words_for_every_intent_slot_and_name() -> None:
    for split in get_args(Split):
        assert set(wording(split).openings) == set(ALL_INTENTS)
        assert set(wording(split).gives) == set(get_args(Slot)) - {"photo", "price", "budget"}
        assert set(wording(split).names) == set(get_args(NameKind))


@pytest.mark.parametrize("kind", get_args(NameKind))
def test_no_two_splits_share_a_name(kind: NameKind) -> None:
    for first, other in itertools.combinations(get_args(Split), 2):
        assert not set(words(kind, first)) & set(words(kind, other))


def test_demonstrations_are_flawed_as_published() -> None:
    rng, made = random.Random(0), []
    for scenario in itertools.islice(scenarios(seed=9, split="train"), 500):
        made.append(demonstrate(scenario, rng))
    for intent, flaws in FLAWS.items():
        assert max(flaws.values()) <= 0.3
        mine = [d for d in made if d.intent == intent]
        for flaw in flaws:
            share = sum(d.flaw == flaw for d in mine) / len(mine)
            assert 0 < share <= flaws[flaw] + 0.08
    assert 0.3 < sum(d.flaw is not None for d in made) / len(made) < 0.6


def test_a_customer_answers_what_is_asked_and_leaves_when_nothing_is(
    development: list[Scenario],
) -> None:
    customer = next(s.customer for s in development if "zip" in s.customer.slots)
    answer = reply(customer, "What is the zip code?")
    assert answer is not None
    assert customer.slots["zip"] in answer
    assert reply(customer, "What is your favourite colour?") == "I do not know."
    assert reply(customer, "Done, bye.") is None
    assert reply(customer, "") == customer.opening
