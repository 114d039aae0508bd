"""An app that is not ours is recorded, and trained on its traces."""

from tests import ROOT
from tests.examples import run_example


def test_an_app_that_is_not_ours_is_recorded_and_trained_on_its_traces() -> None:
    output = run_example("-m", "examples.record_your_app", cwd=ROOT)
    assert "importance ratio 1.000" in output
    assert output.rstrip().endswith("no problems")
