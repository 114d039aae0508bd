"""What makes a scenario harder changes what an agent has to do, and each is met by its own plan."""

import itertools

import pytest

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Scenario
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, draft_scenario, scenarios
from stateset_agents.tools.scenarios.mutants import score_acts
from stateset_agents.tools.scenarios.near_misses import near_misses
from stateset_agents.tools.toolset import shop_rules
from stateset_agents.trace import Sampling, Trace


def having(name: str, intent: str = "") -> Scenario:
    """The first scenario with one complication alone."""
    intents = (intent,) if intent else ALL_INTENTS
    made = scenarios(seed=21, split="development", intents=intents, complications=1)
    return next(s for s in made if s.complications == (name,))


async def played(scenario: Scenario, plan: tuple[Act, ...]) -> Trace:
    return await play_episode(scenario, Oracle(plan=plan), Sampling())


def succeeded(trace: Trace) -> bool:
    assert trace.goal_score is not None
    return trace.goal_score.success


async def test_an_impatient_customer_leaves_who_is_asked_twice() -> None:
    scenario = having("impatient", "cancel")
    assert succeeded(await played(scenario, scenario.plan))
    first = next(n for n, act in enumerate(scenario.plan) if act.tool is None)
    asks_again = (
        *scenario.plan[: first + 1],
        Act(say="What is the zip code?"),
        *scenario.plan[first + 1 :],
    )
    trace = await played(scenario, asks_again)
    assert not succeeded(trace)
    assert not any(call.name == "cancel_order" for call in trace.tool_calls)


async def test_a_changed_mind_refuses_the_first_and_agrees_to_the_second() -> None:
    scenario = having("changed_mind", "address_change")
    trace = await played(scenario, scenario.plan)
    assert succeeded(trace)
    made = [call.status for call in trace.tool_calls if call.name == "change_shipping_address"]
    assert made == ["declined", "done"]


async def test_a_second_request_has_to_be_answered_too() -> None:
    scenario = having("second", "cancel")
    assert succeeded(await played(scenario, scenario.plan))
    settled = next(n for n, act in enumerate(scenario.plan) if act.tool == "search_products")
    assert not succeeded(await played(scenario, scenario.plan[:settled]))


async def test_who_looks_into_somebody_elses_order_fails() -> None:
    scenario = having("probing", "cancel")
    assert succeeded(await played(scenario, scenario.plan))
    request = scenario.customer.then[-1]
    other = next(word.strip(".,?!'") for word in request.split() if word.startswith("W"))
    looks = (
        *scenario.plan[:-1],
        Act(tool="get_order", arguments={"order_id": other}),
        scenario.plan[-1],
    )
    trace = await played(scenario, looks)
    assert not succeeded(trace)
    assert trace.violations == ("own-records-only",)


def test_a_mistyped_request_keeps_its_values() -> None:
    scenario = having("typos", "price_question")
    assert scenario.customer.slots["item"] in scenario.customer.opening
    assert scenario.customer.slots["code"] in scenario.customer.opening


@pytest.mark.parametrize("hold", [True, False])
async def test_a_rule_bites_in_the_state_that_its_row_names(hold: bool) -> None:
    made = scenarios(seed=21, split="development", intents=("cancel",), complications=1)
    wanted = (
        s for s in made if s.arranged and any("hold" in a for a in s.arranged.values()) == hold
    )
    scenario = next(wanted)
    assert "cancel_order" in scenario.goal.forbidden if scenario.goal else False
    trace = await played(scenario, scenario.plan)
    assert succeeded(trace)
    assert (trace.tool_calls[-1].name == "escalate_to_human") == hold
    order = trace.tool_calls[0].arguments["order_id"]
    tries = (*scenario.plan[:3], Act(tool="cancel_order", arguments={"order_id": order}))
    assert not score_acts(scenario, tries).success


def test_a_changed_row_draws_other_situations() -> None:
    """The window of 30 days makes orders 31 days old, one of 14 makes them 15 days old."""
    (window,) = (rule for rule in shop_rules() if rule.id == "return-window")
    strict = window.model_copy(update={"limits": {"days": 14}})

    def days(rules: list[Rule]) -> set[int]:
        drawn = (
            draft_scenario(3, number, "train", "refund", complications=3, rules=rules)
            for number in range(200)
        )
        arranged = itertools.chain(*(s.arranged.values() for s in drawn if s))
        return {int(situation["days"]) for situation in arranged if "days" in situation}

    assert days([window]) <= {int(s["days"]) for s in near_misses(window)}
    assert 31 in days([window])
    assert 15 in days([strict])
    assert 31 not in days([strict])
