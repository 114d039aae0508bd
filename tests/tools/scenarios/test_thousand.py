"""A thousand seeds that nobody looked at, with up to three complications and in five languages: every oracle scores 1
through the public graph, every mutant less."""

import itertools
from typing import get_args

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Scenario
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, COMPLICATIONS, scenarios
from stateset_agents.tools.scenarios.mutants import mutants, score_acts
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.wording import Locale, Split
from stateset_agents.trace import Sampling

FIRST = 300_000
SPLITS: tuple[Split, ...] = get_args(Split)
LOCALES: tuple[Locale, ...] = get_args(Locale)


def unseen(number: int) -> Scenario:
    """The first scenario of a seed of its own; intents and splits in turn."""
    intent = ALL_INTENTS[number % len(ALL_INTENTS)]
    split = SPLITS[number % len(SPLITS)]
    seed, hard, locale = FIRST + number, number % 4, LOCALES[number % len(LOCALES)]
    made = scenarios(
        seed=seed, split=split, intents=(intent,), complications=hard, locales=(locale,)
    )
    return next(made)


async def test_a_thousand_seeds() -> None:
    met: set[str] = set()
    for number in range(1000):
        scenario = unseen(number)
        met |= {*scenario.complications, scenario.customer.locale}
        trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
        assert trace.goal_score is not None
        assert trace.goal_score.success, (scenario.id, trace.goal_score)
        assert score_acts(scenario, scenario.plan).success
        for name, acts in mutants(scenario).items():
            assert not score_acts(scenario, acts).success, (scenario.id, name)
    assert met == {*COMPLICATIONS, *LOCALES}


def test_the_same_seed_gives_the_same_bytes() -> None:
    def written() -> list[str]:
        every = (unseen(number) for number in range(40))
        return [scenario.model_dump_json() for scenario in every]

    first = written()
    generate.cache_clear()
    assert written() == first


def test_intents_take_turns() -> None:
    some = itertools.islice(scenarios(seed=3, split="train", intents=ALL_INTENTS), 60)
    assert {scenario.intent for scenario in some} == set(ALL_INTENTS)
