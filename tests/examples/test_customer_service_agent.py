"""The service agent uses its tools."""

from pathlib import Path

from tests import ROOT
from tests.examples import run_example


def test_the_service_agent_uses_its_tools(tmp_path: Path) -> None:
    output = run_example(str(ROOT / "examples" / "customer_service_agent.py"), cwd=tmp_path)
    assert "Human Message" in output
    assert "Tool Message" in output
    assert "verify_identity" in output
