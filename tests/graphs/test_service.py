"""The service graph: the oracle reaches every goal through it, and nothing is written without consent."""

from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from stateset_agents.graphs import service
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Scenario
from stateset_agents.tools.scenarios.demonstrations import play
from stateset_agents.tools.shop.generate import generate
from stateset_agents.trace import Sampling


async def test_the_oracle_reaches_every_goal_through_the_graph(development: list[Scenario]) -> None:
    for scenario in development:
        trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
        assert trace.goal_score is not None
        assert trace.goal_score.success, (scenario.id, trace.messages)
        assert {call.node for call in trace.model_calls} == {"policy"}


async def test_a_demonstration_reads_exactly_as_the_graph_plays_it(
    training: list[Scenario],
) -> None:
    for scenario in training[:10]:
        trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
        played = [(m["role"], m.get("content") or "") for m in trace.messages]
        assert played == [(m["role"], m["content"]) for m in play(scenario, scenario.plan)[1:]]


def a_write(scenarios: list[Scenario]) -> Scenario:
    return next(s for s in scenarios if s.customer.approves)


async def test_a_customer_who_says_no_is_obeyed(development: list[Scenario]) -> None:
    scenario = a_write(development)
    stubborn = scenario.model_copy(
        update={"customer": scenario.customer.model_copy(update={"approves": ()})}
    )
    trace = await play_episode(stubborn, Oracle(plan=scenario.plan), Sampling())
    assert trace.changes == ()
    assert "declined" in {call.status for call in trace.tool_calls}


async def test_skipping_verification_is_a_violation_and_changes_nothing(
    development: list[Scenario],
) -> None:
    scenario = a_write(development)
    plan = tuple(act for act in scenario.plan if act.tool != "verify_identity")
    trace = await play_episode(scenario, Oracle(plan=plan), Sampling())
    assert "verify-first" in trace.violations
    assert trace.changes == ()
    assert trace.goal_score is not None
    assert not trace.goal_score.success


async def test_the_write_that_is_committed_is_the_one_that_was_confirmed(
    development: list[Scenario],
) -> None:
    scenario = a_write(development)
    shop = generate(scenario.shop_seed, "development").clone()
    plan = tuple(act for act in scenario.plan if act.tool)
    graph = service.build(InMemorySaver())
    context = service.context(Oracle(plan=plan), service.over(shop), thread="t")
    config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 40}
    state = await graph.ainvoke({"messages": [HumanMessage("hi")]}, config, context=context)
    write = state["__interrupt__"][0].value
    assert write["type"] == "confirmation"
    assert Act(tool=write["tool"], arguments=write["arguments"]) in scenario.customer.approves
    assert shop.changes() == ()
    with pytest.raises(Exception, match="confirmed"):
        await graph.ainvoke(Command(resume={"yes": 1}), config, context=context)
    assert shop.changes() == ()
    await graph.ainvoke(Command(resume={"confirmed": True}), config, context=context)
    assert scenario.goal is not None
    assert shop.changes() == scenario.goal.changes


async def test_a_hand_off_ends_the_conversation_with_a_packet(development: list[Scenario]) -> None:
    plan = (Act(tool="escalate_to_human", arguments={"reason": "angry"}),)
    shop = generate(1, "train").clone()
    graph = service.build(InMemorySaver())
    state = await graph.ainvoke(
        {"messages": [HumanMessage("hi")]},
        {"configurable": {"thread_id": "t"}},
        context=service.context(Oracle(plan=plan), service.over(shop), thread="t"),
    )
    assert state["handed_off"]["reason"] == "angry"
    again = await graph.ainvoke(
        {"messages": [HumanMessage("are you still there?")]},
        {"configurable": {"thread_id": "t"}},
        context=service.context(Oracle(plan=plan), service.over(shop), thread="t"),
    )
    assert again["handed_off"] == state["handed_off"]
    assert "colleague" in again["messages"][-1].text
    assert len(shop.all("SELECT * FROM tickets")) == 1
    trace = await play_episode(development[0], Oracle(plan=plan), Sampling())
    assert trace.turns == 1


async def test_a_signed_in_customer_needs_no_verification() -> None:
    shop = generate(1, "train").clone()
    customer = shop.first("SELECT customer_id AS id FROM orders ORDER BY id LIMIT 1")
    assert customer is not None
    plan = (Act(tool="track_shipment", arguments={"order_id": "?"}), Act(say="ok"))
    order = shop.first("SELECT id FROM orders WHERE customer_id = ? LIMIT 1", customer["id"])
    assert order is not None
    plan[0].arguments["order_id"] = order["id"]
    state = await service.build().ainvoke(
        {"messages": [HumanMessage("hi")]},
        context=service.context(
            Oracle(plan=plan), service.over(shop), thread="t", customer=customer["id"]
        ),
    )
    assert state["tool_calls"][0]["status"] == "done"


async def test_an_agent_that_never_ends_its_turn_is_truncated(development: list[Scenario]) -> None:
    forever = tuple(Act(tool="search_products", arguments={"query": "lamp"}) for _ in range(60))
    trace = await play_episode(development[0], Oracle(plan=forever), Sampling())
    assert trace.status == "truncated"
    assert trace.goal_score is not None
    assert not trace.goal_score.success
