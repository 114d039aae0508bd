"""kill -9 under load: every acknowledged call is readable, and a run without an end is typed so."""

from pathlib import Path

import pytest

from benchmarks.kill_store import kill_after


@pytest.mark.parametrize("acknowledged", [3, 250, 1117])
def test_what_was_acknowledged_is_there(acknowledged: int, tmp_path: Path) -> None:
    assert kill_after(tmp_path, acknowledged) == ""
