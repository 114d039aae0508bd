"""A graph that is not commerce gets better."""

import json
from pathlib import Path

from tests import ROOT
from tests.examples import run_example


def test_a_graph_that_is_not_commerce_gets_better(tmp_path: Path) -> None:
    run_example(
        "-m", "stateset_agents", "train", "--graph", "examples.train_your_graph:graph",
        "--reward", "examples.train_your_graph:reward", "--scenarios",
        str(ROOT / "examples" / "questions.json"), "--steps", "6", "--groups", "4", "--group-size", "8",
        "--max-tokens", "32", "--out", str(tmp_path / "runs"), cwd=ROOT,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["measured_by"] == "reward"
    assert summary["gain"] > 0.05
