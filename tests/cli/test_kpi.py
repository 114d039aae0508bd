"""KPIs show what was measured, of one policy at a time; a counterfactual goes on with the policy that played."""

import json
from pathlib import Path

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.replay import policy_after
from stateset_agents.scenario import Customer, Fact, Goal, Scenario
from stateset_agents.trace import Feedback, ModelCall, Trace
from stateset_agents.traces.store import TraceStore
from tests.command_line import run

TASK = Scenario(
    id="s", intent="status", customer=Customer(opening="hi"), goal=Goal(facts=(Fact(name="f", any_of=("shipped",)),))
)  # fmt: skip


def trace(number: int, *feedback: Feedback, version: str = "policy") -> Trace:
    call = ModelCall(
        response_id="r", answer={"role": "assistant", "content": "ok"}, version=version, seconds=1.0
    )
    return Trace(
        id=f"{number:032x}", scenario=TASK, graph="service", status="completed", seconds=2.0, model_calls=(call,),
        messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "shipped"}), feedback=feedback,
    )  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        JobConfig(model="tests/a-model", max_model_len=99).model_dump_json()
    )
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with TraceStore(tmp_path / "traces.db") as store:
        for number, phase in enumerate(("before", "train", "train", "after")):
            store.append(trace(number), phase=phase)
    return tmp_path


def test_one_phase_is_shown_amounts_are_positive_and_proxies_are_marked(run_folder: Path) -> None:
    shown = run("traces", "kpi", str(run_folder))
    assert "phase after; others with --phase: before, train" in shown
    assert "status (1)" in shown
    assert "status (2)" in run("traces", "kpi", str(run_folder), "--phase", "train")
    (line,) = [line for line in shown.splitlines() if "handling_time" in line]
    assert "2.000" in line
    assert "-" not in line.replace("─", "")
    assert "~1.000" in next(line for line in shown.splitlines() if "csat" in line)
    assert "nobody was asked" in shown


def test_what_the_customer_said_is_no_proxy(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "t.db") as store:
        store.append(trace(1, Feedback(key="csat", value=3.0)))
    shown = run("traces", "kpi", str(tmp_path / "t.db"), "--objective", "csat")
    assert "0.500" in shown
    assert "~" not in shown


def test_phases_of_different_policies_are_not_mixed(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "t.db") as store:
        store.append(trace(1), phase="before")
        store.append(trace(2), phase="train")
    assert "--phase: expected one of" in run("traces", "kpi", str(tmp_path / "t.db"), status=2)


def test_a_counterfactual_goes_on_with_the_policy_that_played(
    run_folder: Path, tmp_path: Path
) -> None:
    place = str(run_folder)
    base = policy_after(trace(1), place, None, None, None)
    assert (base.config.model, base.config.max_model_len, base.adapter) == (
        "tests/a-model",
        99,
        None,
    )
    trained = policy_after(trace(1, version="policy-0123"), f"{place}/traces.db", None, None, None)
    assert trained.adapter == (run_folder / "adapter").resolve()
    named = policy_after(trace(1, version="policy-0123"), place, None, "seed", None)
    assert (named.config.model, named.adapter) == ("seed", None)
    with pytest.raises(BadInput, match="--policy, --model or --base-url"):
        policy_after(trace(1), "elsewhere/t.db", None, None, None)
    assert json.loads((run_folder / "config.json").read_text())["model"] == "tests/a-model"
