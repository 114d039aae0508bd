"""What somebody meets with the README in hand: a split that is kept, rules everywhere, rewards of one's own, traces of any graph."""

import json
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.jobs.config import JobConfig, check_config
from stateset_agents.jobs.registry import find_reward, find_rollout, rules_of
from stateset_agents.jobs.scenario_sets import find_scenarios, keep_split, trained_on
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Scenario
from stateset_agents.trace import ModelCall, Sampling, ToolCall, Trace
from stateset_agents.traces.store import TraceStore
from tests import ROOT
from tests.command_line import run


class OwnReward:
    """A class with `score`, as people write it."""

    def score(self, trace: Trace) -> float:
        return 0.25


async def test_a_class_with_score_is_a_reward() -> None:
    reward = find_reward("tests.cli.test_newcomer:OwnReward")
    call = ModelCall(response_id="r", answer={"role": "assistant", "content": "hello"})
    (score,) = await reward([Trace(model_calls=(call,), messages=(dict(call.answer or {}),))])
    assert score is not None
    assert score.value == 0.25
    with pytest.raises(BadInput, match=r"a class with `score"):
        find_reward("tests.cli.test_newcomer:ROOT")


def test_what_was_trained_on_is_not_measured_on(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"id": f"t{n}", "prompt": "hi"} for n in range(16)]))
    config = check_config({"graph": "tests.strangers:talker", "scenarios": str(file)})
    training, held_out = find_scenarios(config)
    assert (len(training), len(held_out)) == (12, 4)
    keep_split(tmp_path, training)
    _, measured = find_scenarios(config, only_held_out=True, trained=trained_on(tmp_path))
    assert [s.id for s in measured] == [s.id for s in held_out]
    assert trained_on(tmp_path / "adapter") == trained_on(tmp_path)
    _, every = find_scenarios(config, only_held_out=True, trained=trained_on(None))
    assert len(every) == 16
    with pytest.raises(BadInput, match="not trained on"):
        find_scenarios(config, only_held_out=True, trained=frozenset(s.id for s in every))


RULE = """
- id: no-refunds
  version: 1
  applies_to: [issue_refund, cancel_order]
  unless: call.confirmed == False
  code: closed
  help: the till is closed today
  text: Nothing is refunded today.
"""


async def test_rules_of_a_file_bind_episodes_too(
    tmp_path: Path, development: list[Scenario]
) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(RULE)
    scenario = next(s for s in development if s.intent == "cancel" and s.customer.approves)
    policy = Oracle(plan=scenario.plan)
    free = await find_rollout(JobConfig())(scenario, policy, Sampling())
    bound = await find_rollout(JobConfig(rules=str(file)))(scenario, policy, Sampling())
    assert free.changes
    assert bound.changes == ()
    assert "no-refunds" in bound.violations
    with pytest.raises(BadInput, match="--rules"):
        rules_of(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="build_graph"):
        check_config({"graph": "tests.strangers:talker", "rules": str(file), "scenarios": "x"})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "traces.db"
    call = ModelCall(
        response_id="r", node="write", messages=({"role": "user", "content": "?"},),
        answer={"role": "assistant", "content": "forty-two"},
    )  # fmt: skip
    tool = ToolCall(
        id="1", name="look", arguments={"at": "sky"}, status="done", result={"seen": "moon"}
    )
    with TraceStore(place) as kept:
        for phase in ("before", "train"):
            kept.append(
                Trace(
                    id=f"{phase:_<32}", graph="mine", input={"question": "why?"}, output={"answer": "because"},
                    model_calls=(call,), tool_calls=(tool,),
                ),
                phase=phase,
            )  # fmt: skip
    return place


def test_a_trace_of_any_graph_shows_what_it_holds(store: Path) -> None:
    shown = run("traces", "show", str(store), "before")
    for part in ("why?", "because", "forty-two", "look", "moon"):
        assert part in shown


def test_a_phase_that_is_not_there_is_named(store: Path) -> None:
    for command in (["list"], ["kpi"], ["export", "--out", "x.jsonl"]):
        error = run("traces", command[0], str(store), *command[1:], "--phase", "nonsense", status=2)
        assert "'before', 'train'" in error
    listed = run("traces", "list", str(store))
    assert "before______" in listed
    assert "2 of 2" in listed


def test_an_export_that_langsmith_does_not_take_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    error = run("traces", "langsmith", "export", str(store), "--project", "x", status=2)
    assert "LANGSMITH_ENDPOINT" in error


def test_the_readmes_python_is_python() -> None:
    import re

    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        code: Any = compile(block, "README.md", "exec")
        assert code
