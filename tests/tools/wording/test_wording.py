"""Customers and agents speak five languages; what an agent has to say may be said in any of their ways."""

import itertools
import re
from string import Formatter
from typing import get_args

import pytest

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.grounding import claims, offers, specifics, unsupported
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Customer, Fact
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.tools.scenarios.mutants import score_acts
from stateset_agents.tools.scenarios.replies import reply
from stateset_agents.tools.wording import Locale, Slot, Split, expansions, phrases, wording
from stateset_agents.trace import Sampling

OTHERS: tuple[Locale, ...] = tuple(locale for locale in get_args(Locale) if locale != "en")


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("locale", OTHERS)
def test_an_agents_words_are_those_of_english(locale: Locale) -> None:
    ours, english = phrases(locale), phrases("en")
    assert set(ours.say) == set(english.say)
    assert set(ours.words) == set(english.words)
    assert set(ours.slots) == set(ours.asks_for) == set(get_args(Slot))
    assert len(set(ours.months)) == 12
    for kind, sentences in english.say.items():
        expected = places(sentences[0])
        assert all(places(text) == expected for text in ours.say[kind]), kind


@pytest.mark.parametrize("locale", get_args(Locale))
def test_a_customer_understands_what_is_asked_for_and_nothing_else(locale: Locale) -> None:
    ours = phrases(locale)
    customer = Customer(slots={slot: f"<{slot}>" for slot in get_args(Slot)}, locale=locale)
    for slot, ask in itertools.product(get_args(Slot), ours.say["ask"]):
        assert reply(customer, ask.format(slots=ours.slots[slot])) == f"<{slot}>"
    everything = ours.and_.join(ours.slots.values())
    answer = reply(customer, ours.say["ask"][0].format(slots=everything))
    assert answer is not None
    assert set(answer.split()) == {f"<{slot}>" for slot in get_args(Slot)}


@pytest.mark.parametrize("split", get_args(Split))
@pytest.mark.parametrize("locale", OTHERS)
def test_customers_have_words_for_everything(locale: Locale, split: Split) -> None:
    ours, english = wording(split, locale), wording("development", "en")
    assert set(ours.openings) == set(ALL_INTENTS)
    assert set(ours.gives) == set(english.gives)
    assert all((ours.pushback, ours.injected, ours.false_claims, ours.probing))
    for intent, sentences in english.openings.items():
        expected = places(sentences[0])
        assert all(places(text) == expected for text in ours.openings[intent]), intent


def runs(split: Split, locale: Locale, length: int) -> set[tuple[str, ...]]:
    words = wording(split, locale)
    texts = [*words.pushback, *words.injected, *words.false_claims, *words.probing]
    for forms in (*words.openings.values(), *words.gives.values()):
        texts += [text for form in forms for text in expansions(form)]
    cut = [re.findall(r"[\w{}]+", text.lower()) for text in texts]
    return {tuple(w[i : i + length]) for w in cut for i in range(len(w) - length + 1)}


@pytest.mark.parametrize("seen", ["train", "development"])
@pytest.mark.parametrize("locale", OTHERS)
def test_held_out_customers_word_their_requests_differently(locale: Locale, seen: Split) -> None:
    held_out = runs("held_out", locale, 4)
    assert len(held_out & runs(seen, locale, 4)) / len(held_out) <= 0.01


@pytest.mark.parametrize("locale", OTHERS)
async def test_every_intent_is_solved_in_the_customers_language(locale: Locale) -> None:
    for intent in ALL_INTENTS:
        made = scenarios(seed=8, split="development", intents=(intent,), locales=(locale,))
        scenario = next(made)
        assert scenario.customer.locale == locale
        trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
        assert trace.goal_score is not None
        assert trace.goal_score.success, (scenario.id, trace.goal_score, trace.messages)
        silent = tuple(act.model_copy(update={"say": ""}) for act in scenario.plan)
        assert (
            not scenario.goal or not scenario.goal.facts or not score_acts(scenario, silent).success
        )


@pytest.mark.parametrize(
    ("locale", "value", "text"),
    [
        ("de", "20 July", "am 20. Juli"),
        ("es", "20 July", "el 20 de julio"),
        ("fr", "20 July", "le 20 juillet"),
        ("pt", "20 July", "a 20 de julho"),
        ("de", "12.50", "Sie bekommen 12,50 zurück"),
        ("de", "12.50", "Sie bekommen 12.50 zurück"),
        ("de", "20 July", "on 20 July"),
    ],
)  # fmt: skip
def test_a_value_may_be_written_in_either_way(locale: Locale, value: str, text: str) -> None:
    fact = Fact(name="it", any_of=phrases(locale).readings(value))
    assert fact.said_in(text)
    assert not fact.said_in(text.replace("20", "21").replace("12", "13"))


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("Sie kommt am 3. Mai, 1.045,50 gehen zurück.", {"3 may", "1045.50"}),
        ("Llega el 3 de mayo.", {"3 may"}),
        ("Elle arrive le 1er août, 12,50, merci.", {"1 august", "12.50"}),
        ("Chega a 3 de março.", {"3 march"}),
        ("Orders 10,20,30.", {"10", "20", "30"}),
    ],
)
def test_amounts_and_dates_are_read_in_every_language(text: str, stated: set[str]) -> None:
    assert specifics(text) == stated


@pytest.mark.parametrize(
    ("text", "claimed", "offered"),
    [
        ("Ihre Bestellung ist storniert.", {"cancelled"}, set()),
        ("Sie kann nicht storniert werden.", set(), set()),
        ("Der Betrag wurde erstattet, der Versand ist kostenlos.", {"refunded"}, {"free"}),
        ("El pedido está cancelado y hay un descuento.", {"cancelled"}, {"discount"}),
        ("No ha sido reembolsado.", set(), set()),
        ("Votre commande est annulée, voici un bon d'achat.", {"cancelled"}, {"voucher"}),
        ("Elle ne peut pas être remboursée.", set(), set()),
        ("O pedido foi cancelado. Não foi reembolsado.", {"cancelled"}, set()),
    ],
)
def test_claims_and_offers_are_read_in_every_language(
    text: str, claimed: set[str], offered: set[str]
) -> None:
    assert claims(text) == claimed
    assert offers(text) == offered


def test_the_guard_takes_another_language_for_what_a_tool_said() -> None:
    tools = ['{"arrives": "3 May", "total": "12.50"}']
    assert not unsupported("Sie kommt am 3. Mai, 12,50.", customer=[], tools=tools, acted=False)
    wrong = unsupported("Sie kommt am 4. Mai.", customer=[], tools=tools, acted=False)
    assert wrong == ["4 may"]
