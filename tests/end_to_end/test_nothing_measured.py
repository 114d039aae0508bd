"""A run that measured or learned nothing says so in a line, exits with 2, and leaves no adapter."""

import json
from pathlib import Path

import pytest

from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.store import TraceStore
from tests import ROOT
from tests.command_line import run

TASKS = [{"id": f"t{n}", "prompt": f"Hello number {n}"} for n in range(4)]


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
    return str(tmp_path / "tasks.json")


@pytest.mark.parametrize(
    ("command", "graph", "reward", "message"),
    [
        ("evaluate", "talker", "shop", "scored, found none among 4"),
        ("evaluate", "broken", "shop", "all 4 failed: ValueError: my own bug"),
        ("evaluate", "helper", "tests.strangers:zero_reward", "no call in 4 episodes"),
        ("collect", "talker", "tests.strangers:no_reward", "scored, found none among"),
        ("train", "talker", "tests.strangers:no_reward", "scored, found none among 1"),
        ("train", "talker", "tests.strangers:same_reward", "nothing was learned"),
    ],
)
def test_it_says_so(
    command: str, graph: str, reward: str, message: str, tasks: str, tmp_path: Path
) -> None:
    small = ["--max-tokens", "8", "--out", str(tmp_path / "runs")]
    if command != "evaluate":
        small += ["--steps", "1", "--groups", "1", "--group-size", "2"]
    error = run(
        command, "--graph", f"tests.strangers:{graph}", "--reward", reward, "--scenarios", tasks, *small,
        status=2, cwd=ROOT,
    )  # fmt: skip
    assert message in error
    assert not list(tmp_path.glob("runs/*/adapter"))


def test_text_that_claims_acts_is_not_imitated(tmp_path: Path) -> None:
    store = tmp_path / "traces.db"
    question = {"role": "user", "content": "Refund W1, please."}
    answer = {"role": "assistant", "content": "Your order was refunded."}
    call = ModelCall(response_id="r", messages=(question,), answer=answer)
    with TraceStore(store) as kept:
        for number in range(3):
            kept.append(Trace(id=f"t{number}", messages=(question, answer), model_calls=(call,)))
    error = run("train", "--from-traces", str(store), "--out", str(tmp_path / "runs"), status=2)
    assert "3 more claim acts" in error
    assert not list(tmp_path.glob("runs/*/adapter"))
