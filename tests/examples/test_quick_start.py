"""The quick start trains and answers."""

import json
from pathlib import Path

from tests import ROOT
from tests.examples import run_example


def test_the_quick_start_trains_and_answers(tmp_path: Path) -> None:
    output = run_example(str(ROOT / "examples" / "quick_start.py"), cwd=tmp_path)
    assert output.strip()
    (run,) = (tmp_path / "runs").iterdir()
    newest = max((run / "steps").glob("[0-9]*"))
    log = json.loads((newest / "log.json").read_text())
    assert sum(line["episodes"] for line in log) == 50
