"""A run's numbers: JSON lines always, trackers by name, nested ones by their path."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stateset_agents.errors import BadInput
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.step_log import StepLog
from stateset_agents.trainers.trackers import RunLog, check_names, flat


def test_numbers_are_flat_by_their_path() -> None:
    line = {"reward": 0.5, "alarm": None, "nodes": {"plan": {"calls": 3}}, "changes": ["x"]}
    assert flat(line) == {"reward": 0.5, "nodes/plan/calls": 3.0}


def test_lines_and_tensorboard_have_the_same_numbers(tmp_path: Path) -> None:
    logs = RunLog(tmp_path, ("tensorboard",), TrainConfig())
    for step in (1, 2, 3):
        nodes = {"policy": {"reward": 0.25}}
        logs.add(StepLog(step=step, reward=step / 4, nodes=nodes))
    logs.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == [0.25, 0.5, 0.75]
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [e.value for e in events.Scalars("reward")] == [0.25, 0.5, 0.75]
    assert [e.step for e in events.Scalars("nodes/policy/reward")] == [1, 2, 3]


def test_a_tracker_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="expected one of tensorboard"):
        check_names(("paper",))
    with pytest.raises(BadInput, match="pip install trackio"):
        check_names(("trackio",))
