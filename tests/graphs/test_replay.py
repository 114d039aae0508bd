"""An episode is played again to the byte, a change is found where it begins, and another tool result leads elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.graphs.replay import Swap, counterfactual, replay
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.scenario import Scenario
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.record import record
from stateset_agents.traces.replay import replay as replay_app
from stateset_agents.traces.store import TraceStore
from tests.command_line import run
from tests.patterns import PATTERNS, Scripted, react


async def test_sampled_episodes_are_the_same_again(
    engine: str, development: list[Scenario], tmp_path: Path
) -> None:
    policy = connect(engine, "policy")
    with TraceStore(tmp_path / "traces.db") as store:
        for number, scenario in enumerate(development[:10]):
            store.append(
                await play_episode(scenario, policy, Sampling(version="policy", seed=number))
            )
        store.flush()
        traces = list(store.traces())
    for trace in traces:
        _, differs = await replay(trace)
        assert differs is None


@pytest.mark.parametrize("intent", ALL_INTENTS)
async def test_every_intent_is_the_same_again(intent: str) -> None:
    made = scenarios(seed=31, split="development", intents=(intent,), complications=3)
    scenario = next(made)
    trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
    _, differs = await replay(trace)
    assert differs is None


def changed(trace: Trace, number: int, **update: Any) -> Trace:
    messages = list(trace.messages)
    messages[number] = {**messages[number], **update}
    return trace.model_copy(update={"messages": tuple(messages)})


async def test_the_first_difference_is_named(development: list[Scenario]) -> None:
    scenario = next(s for s in development if s.intent == "cancel" and s.customer.approves)
    trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
    place = next(n for n, m in enumerate(trace.messages) if m["role"] == "tool")
    _, differs = await replay(changed(trace, place, content='{"forged": true}'))
    assert differs is not None
    assert differs.startswith(f"message {place}:")
    assert "forged" in differs
    _, differs = await replay(trace.model_copy(update={"changes": trace.changes[1:]}))
    assert differs is not None
    assert differs.startswith("changes of the shop")


async def test_another_result_leads_elsewhere(development: list[Scenario]) -> None:
    """The oracle stands in for a policy that goes on: what matters is where the record ends."""
    scenario = next(s for s in development if s.intent == "cancel" and s.customer.approves)
    trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
    late = [act for act in scenario.plan if act.tool != "cancel_order"]
    swap = Swap("get_order", {"status": "shipped", "lines": []})
    made = await counterfactual(trace, swap, Oracle(plan=tuple(late)))
    assert [c.name for c in made.tool_calls] == ["verify_identity", "get_order"]
    assert made.tool_calls[1].result == {"status": "shipped", "lines": []}
    assert made.changes == ()
    assert trace.changes != ()
    with pytest.raises(BadInput, match="verify_identity"):
        await counterfactual(trace, Swap("issue_refund", {}), Oracle(plan=()))
    with pytest.raises(BadInput, match="no scenario"):
        await replay(Trace())


async def test_the_command_line(engine: str, development: list[Scenario], tmp_path: Path) -> None:
    scenario = next(s for s in development if s.intent == "shipping_status")
    trace = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling(temperature=0.0))
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(trace)
    place = str(tmp_path)
    assert "the replay is identical" in run("traces", "replay", place, trace.id[:10])
    other = json.dumps({"status": "delivered", "carrier": "UPS", "arrived": "9 March"})
    output = run(
        "traces",
        "replay",
        place,
        trace.id[:10],
        "--set",
        f"track_shipment={other}",
        "--base-url",
        engine,
    )
    assert "9 March" in output
    assert "expected TOOL=RESULT" in run(
        "traces", "replay", place, trace.id[:10], "--set", "x", status=2
    )


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_a_recorded_app_is_the_same_again_without_its_models_and_tools(
    pattern: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pattern()
    with TraceStore(tmp_path / "traces.db") as store:
        config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 30}
        for given in made.inputs:
            await record(made.graph, store).ainvoke(given, config)
        store.flush()
        traces = list(store.traces())

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(Scripted, "_generate", never)
    _, differs = await replay_app(made.graph, traces)
    assert differs is None


async def test_another_result_of_a_recorded_apps_tool(tmp_path: Path) -> None:
    made = react()
    with TraceStore(tmp_path / "traces.db") as store:
        await record(made.graph, store).ainvoke(made.inputs[0])
        store.flush()
        traces = list(store.traces())
    again, _ = await replay_app(made.graph, traces, swap=("stock", "none of P1"))
    assert again[2]["content"] == "none of P1"
    assert again[3]["content"] == "There are 7."  # what this model says to anything
    forged = traces[0].model_copy(update={"tool_calls": ()})
    _, differs = await replay_app(made.graph, [forged])
    assert differs is not None
    assert "stock" in differs


async def test_the_command_line_replays_an_app(tmp_path: Path) -> None:
    made = react()
    with TraceStore(tmp_path / "traces.db") as store:
        await record(made.graph, store).ainvoke(made.inputs[0])
        store.flush()
        (trace,) = store.traces()
    place, graph = str(tmp_path), "tests.graphs.test_replay:APP"
    assert "the replay is identical" in run(
        "traces", "replay", place, trace.id[:10], "--graph", graph
    )
    output = run(
        "traces", "replay", place, trace.id[:10], "--graph", graph, "--set", 'stock={"left": 0}'
    )
    assert "left" in output


APP = react().graph
