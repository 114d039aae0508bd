"""Mutants: plans that are wrong on purpose, and the score of a plan without a graph."""

from stateset_agents.scenario import Act, GoalScore, Scenario
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.scenarios.replies import approves
from stateset_agents.tools.scenarios.team_intents import role_of
from stateset_agents.tools.shop.generate import Shops, generate, tried
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS, SERVICE_TOOLS


def score_acts(scenario: Scenario, acts: tuple[Act, ...], shops: Shops = generate) -> GoalScore:
    """The score of running `acts` on the tools, without a graph."""
    assert scenario.goal is not None
    assert scenario.split != "user"
    with tried(shops(scenario.shop_seed, scenario.split), scenario.arranged) as shop:
        return _scored(scenario, acts, shop)


def _scored(scenario: Scenario, acts: tuple[Act, ...], shop: Shop) -> GoalScore:
    assert scenario.goal is not None
    executor = Executor(shop, SERVICE_TOOLS if scenario.graph == "service" else ALL_TOOLS)
    session = Session(customer="", role=role_of(scenario.graph))
    replies, attempted, done, denied = [], [], [], []
    for number, act in enumerate(acts):
        replies.append(act.say)
        if act.tool is None:
            continue
        attempted.append(act.tool)
        agreed = approves(scenario.customer, act.tool, act.arguments)
        outcome = executor.settle(session, act.tool, act.arguments, agreed=agreed, key=str(number))
        session = outcome.session
        if outcome.status == "done":
            done.append(act.tool)
        if outcome.rule is not None:
            denied.append(outcome.rule)
    return scenario.goal.score(
        shop.changes(), "\n".join(replies), attempted, done=done, denied=denied
    )


def mutants(scenario: Scenario) -> dict[str, tuple[Act, ...]]:
    """Wrong plans for a scenario; each must score below the oracle."""
    plan = scenario.plan
    writes = list(scenario.customer.approves)
    plans: dict[str, tuple[Act, ...]] = {"does nothing": ()}
    if scenario.goal is not None and scenario.goal.facts:
        plans["says nothing"] = tuple(act for act in plan if act.tool)
    plans["talks only"] = tuple(act for act in plan if act.tool is None)
    plans["skips verification"] = tuple(act for act in plan if act.tool != "verify_identity")
    if not any(act.tool == "verify_identity" for act in plan):
        del plans["skips verification"]
    for act in writes:
        where = next(
            i
            for i, planned in enumerate(plan)
            if (planned.tool, planned.arguments) == (act.tool, act.arguments)
        )
        wrong = dict(act.arguments)
        if "amount" in wrong:
            wrong["amount"] = "0.01"
            plans["wrong amount"] = (
                *plan[:where],
                Act(tool=act.tool, arguments=wrong),
                *plan[where + 1 :],
            )
        swapped = {"order_id": "W00000", "sku": "P00", "items": [{"sku": "P00", "quantity": 1}]}
        name = next(name for name in ("order_id", "sku", "items") if name in act.arguments)
        other = {**act.arguments, name: swapped[name]}
        plans["wrong entity"] = (
            *plan[:where],
            Act(tool=act.tool, arguments=other),
            *plan[where + 1 :],
        )
    return plans
