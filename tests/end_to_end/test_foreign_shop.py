"""A shop that nobody here wrote, connected with `build_graph`: its plans are played, judged, imitated and trained on."""

from pathlib import Path
from typing import Any

import pytest

from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.store import TraceStore
from tests import ROOT, foreign_shop, tau2_retail
from tests.command_line import run

OWN = ["--graph", "tests.foreign_shop:graph", "--world", "tests.foreign_shop:Shop"]


async def played(graph: Any, world: Any, scenario: Scenario) -> Trace:
    made = CustomGraph(graph, "foreign", world=world)
    return await made.play_episode(scenario, Oracle(plan=scenario.plan), Sampling())


async def test_every_plan_reaches_its_goal_and_is_in_its_trace() -> None:
    for scenario in foreign_shop.scenarios():
        trace = await played(foreign_shop.graph, foreign_shop.Shop, scenario)
        assert (trace.status, trace.error) == ("completed", None)
        assert trace.goal_score is not None
        assert trace.goal_score.success
        assert [call.name for call in trace.tool_calls] == [a.tool for a in scenario.plan if a.tool]


async def test_what_is_not_possible_is_an_answer() -> None:
    trace = await played(foreign_shop.graph, foreign_shop.Shop, foreign_shop.wrong_plan())
    (call,) = trace.tool_calls
    assert (trace.status, call.status) == ("completed", "invalid")
    assert "cannot be cancelled" in str(call.result)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bikes.jsonl"
    path.write_text("".join(s.model_dump_json() + "\n" for s in foreign_shop.scenarios(12)))
    return path


def test_plans_are_checked_where_they_belong(file: Path) -> None:
    shown = run("scenarios", "check", str(file), *OWN, cwd=ROOT)
    assert "12 with a plan, 12 played to their end" in shown
    elsewhere = run("scenarios", "check", str(file), status=2, cwd=ROOT)
    assert "Traceback" not in elsewhere


def test_it_is_imitated_trained_on_and_measured_with_its_tool_calls(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    run(
        "train", *OWN, "--scenarios", str(file), "--warm-start", "oracle", "--warm-traces", "9",
        "--steps", "2", "--groups", "2", "--group-size", "4", "--max-tokens", "40", "--temperature", "1.5", "--out", str(out), cwd=ROOT,
    )  # fmt: skip
    (folder,) = out.iterdir()
    with TraceStore(folder / "traces.db", create=False) as store:
        trained = list(store.traces(phase="train"))
    assert any(trace.tool_calls for trace in trained)  # what the bundled toy tries is there, too
    assert all(trace.exactness == "exact" for trace in trained)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not tau2_retail.DIR, reason="TAU2_DIR names no checkout of tau2-bench")
async def test_tau2_benchs_plans_reach_its_own_hashes() -> None:
    """Every gold plan ends with the database that the benchmark's own environment ends with; no run crashes."""
    worlds: list[tau2_retail.Retail] = []

    def world(scenario: Scenario) -> tau2_retail.Retail:
        worlds.append(tau2_retail.Retail(scenario))
        return worlds[-1]

    scenarios = tau2_retail.scenarios()
    assert len(scenarios) == 114
    for scenario in scenarios:
        trace = await played(tau2_retail.graph, world, scenario)
        assert (trace.status, trace.error) == ("completed", None), scenario.id
        assert worlds[-1].digest == tau2_retail.digest_of(scenario)
        assert [c.name for c in trace.tool_calls] == [a.tool for a in scenario.plan if a.tool]
