"""The oracle drives every agent through every intent of its business to a score of 1."""

import itertools

import pytest

from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Scenario
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.tools.scenarios.mutants import mutants, score_acts
from stateset_agents.trace import Sampling

SEED = 4_000


def some(intent: str, count: int) -> list[Scenario]:
    made = scenarios(seed=SEED, split="development", intents=(intent,))
    return list(itertools.islice(made, count))


@pytest.mark.parametrize("intent", ALL_INTENTS)
async def test_the_oracle_scores_one_with_the_agent_whose_business_it_is(intent: str) -> None:
    for scenario in some(intent, 6):
        trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
        assert trace.graph == scenario.graph
        assert trace.goal_score is not None
        assert trace.goal_score.success, (scenario.id, trace.goal_score, trace.messages)


@pytest.mark.parametrize("intent", ALL_INTENTS)
async def test_the_orchestrator_passes_every_intent_on(intent: str) -> None:
    (scenario,) = some(intent, 1)
    plan = (Act(tool="transfer", arguments={"agent": scenario.graph}), *scenario.plan)
    trace = await play_episode(scenario, Oracle(plan=plan), Sampling(), graph="orchestrator")
    assert trace.goal_score is not None
    assert trace.goal_score.success, (scenario.id, trace.goal_score)


def test_every_agent_but_none_else_has_an_intent() -> None:
    assert {some(intent, 1)[0].graph for intent in ALL_INTENTS} == set(DOMAINS)


@pytest.mark.parametrize("intent", ALL_INTENTS)
def test_plans_succeed_and_mutants_fail(intent: str) -> None:
    for scenario in some(intent, 30):
        assert score_acts(scenario, scenario.plan).success
        for name, acts in mutants(scenario).items():
            assert not score_acts(scenario, acts).success, (scenario.id, name)


async def test_an_agents_own_words_are_not_what_counts() -> None:
    """A ticket has to be there; its reason is whatever the agent wrote."""
    (scenario,) = some("escalation", 1)
    other = tuple(
        act.model_copy(update={"arguments": {"reason": "they insist"}}) if act.tool else act
        for act in scenario.plan
    )
    trace = await play_episode(scenario, Oracle(plan=other), Sampling())
    assert trace.goal_score is not None
    assert trace.goal_score.success
