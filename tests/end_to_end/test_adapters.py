"""Two nodes, two adapters, one run; all weights; and a run in which there is nothing to learn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stateset_agents.jobs.config import load_config
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.traces.lineage import problems
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.model import load_model
from stateset_agents.trajectory import trajectory
from tests import ROOT
from tests.small import plain_logprobs


def questions(folder: Path) -> Path:
    path = folder / "questions.json"
    texts = [f"Tell me about the {thing}." for thing in ("weather", "shop", "order", "delivery")]
    rows = [{"id": f"q{n}", "input": {"question": text}} for n, text in enumerate(texts * 2)]
    path.write_text(json.dumps(rows))
    return path


def train(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stateset_agents", "train", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}, timeout=400, check=False,
    )  # fmt: skip


def test_two_nodes_learn_the_opposite_with_an_adapter_each(tmp_path: Path) -> None:
    """Both read the same prompt, so one set of weights could not do what both are paid for."""
    done = train(
        "--graph", "tests.two_nodes:graph", "--reward", "tests.two_nodes:both", "--scenarios", str(questions(tmp_path)),
        "--credit", "node", "--node-reward", "ask=tests.two_nodes:asks", "--node-reward", "tell=tests.two_nodes:tells",
        "--adapter", "asker=ask", "--adapter", "teller=tell", "--steps", "8", "--groups", "4", "--group-size", "8",
        "--max-tokens", "6", "--learning-rate", "4e-3", "--log", "none", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, last = lines[0]["nodes"], lines[-1]["nodes"]
    assert last["ask"]["reward"] > 0.9
    assert last["tell"]["reward"] > 0.9
    assert first["ask"]["reward"] + first["tell"]["reward"] < 1.5
    weights = [
        load_file(run / "adapter" / name / "adapter_model.safetensors")
        for name in ("asker", "teller")
    ]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with TraceStore(run / "traces.db", create=False) as store:
        assert list(problems(store)) == []
        for trace in store.traces(phase="after"):
            versions = {call.node: call.version for call in trace.calls}
            assert versions == {"ask": f"{run.name}-asker-v8", "tell": f"{run.name}-teller-v8"}
            # The adapter that was served is the adapter that was trained: k3 of what was recorded against the weights on disk.
            model = load_model(
                str(SEED_POLICY), adapters={n: run / "adapter" / n for n in ("asker", "teller")}
            )
            for row in trajectory(trace).rows:
                model.set_adapter({"ask": "asker", "tell": "teller"}[row.node])
                with torch.no_grad():
                    gap = torch.tensor(row.logprobs).double() - plain_logprobs(model, row)
                    wrong = {"ask": "teller", "tell": "asker"}[row.node]
                    model.set_adapter(wrong)
                    other = torch.tensor(row.logprobs).double() - plain_logprobs(model, row)
                assert float((gap.exp() - gap - 1).mean()) < 1e-3
                assert float((other.exp() - other - 1).mean()) > 1e-3
            break


def test_one_node_trains_and_the_other_stays_as_it_was(tmp_path: Path) -> None:
    done = train(
        "--graph", "tests.two_nodes:graph", "--reward", "tests.two_nodes:both", "--scenarios", str(questions(tmp_path)),
        "--adapter", "asker=ask", "--steps", "2", "--groups", "2", "--group-size", "4", "--max-tokens", "8", "--log", "none",
        "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    with TraceStore(run / "traces.db", create=False) as store:
        trace = next(store.traces(phase="after"))
        assert {call.node: call.version for call in trace.calls} == {
            "ask": f"{run.name}-asker-v2",
            "tell": "policy",
        }


def test_all_weights_train_and_are_served(tmp_path: Path) -> None:
    done = train(
        "--graph", "tests.two_nodes:graph", "--reward", "tests.two_nodes:asks", "--scenarios", str(questions(tmp_path)),
        "--full", "--node", "ask", "--steps", "4", "--groups", "4", "--group-size", "8", "--max-tokens", "6", "--learning-rate", "2e-4",
        "--log", "none", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["success_after"] > summary["success_before"] + 0.1
    before = AutoModelForCausalLM.from_pretrained(SEED_POLICY, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(run / "adapter", dtype=torch.float32)
    moved = [
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert all(moved)


def test_rewards_that_are_all_equal_end_the_run_and_say_that_nothing_was_learned(
    tmp_path: Path,
) -> None:
    done = train(
        "--graph", "tests.two_nodes:graph", "--reward", "tests.two_nodes:same", "--scenarios", str(questions(tmp_path)),
        "--steps", "30", "--groups", "2", "--group-size", "4", "--max-tokens", "4", "--log", "none", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "nothing was learned" in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert len((run / "log.jsonl").read_text().splitlines()) == 3
    assert load_config(run).steps == 30


def test_a_reward_that_scores_nothing_is_no_zero(tmp_path: Path) -> None:
    """It ends before a step: nothing could be learned."""
    done = train(
        "--graph", "tests.two_nodes:graph", "--reward", "feedback:csat", "--scenarios", str(questions(tmp_path)),
        "--steps", "30", "--groups", "2", "--group-size", "4", "--max-tokens", "4", "--log", "none", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "can be scored, found none among 2" in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    before = json.loads((run / "before.json").read_text())
    assert (before["success"], before["mean_reward"], before["unscored"]) == (None, None, 2)


def test_a_reward_that_is_no_number_stops_the_run_and_names_it(tmp_path: Path) -> None:
    done = train(
        "--graph", "tests.two_nodes:graph", "--reward", "tests.two_nodes:broken", "--scenarios", str(questions(tmp_path)),
        "--steps", "3", "--groups", "2", "--group-size", "4", "--max-tokens", "4", "--log", "none", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Expected a finite number" in done.stderr
    assert "'tests.two_nodes:broken', found nan" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--adapter", "asker"], "--adapter: expected NAME=VALUE"),
        (["--limit", "manners=0.1"], "--limit: expected violations"),
        (["--limit", "violations=often"], "--limit:"),
        (["--log", "paper"], "--log: expected one of tensorboard"),
        (["--profile", "wild"], "--profile: expected one of conservative"),
        (["--forks", "7"], "--forks: expected two whole episodes"),
        (["--world", "tests.two_nodes:graph"], "--world: not used with the shop's own graphs"),
        (
            ["--from-traces", "none.db", "--graph", "service"],
            "--graph: not used when training from a store",
        ),
        (["--method", "sft"], "--method: used only when training from a store"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], error: str
) -> None:
    done = train(*arguments, "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert error in done.stderr
    assert not (tmp_path / "runs").exists()
