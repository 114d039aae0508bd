"""A training run while its vLLM is paused, killed and cut off: two minutes here, twenty in `make prove`."""

from pathlib import Path

from benchmarks.chaos import chaos
from stateset_agents.server.supervisor import Supervised


async def test_a_run_outlives_its_server_and_trains_on_no_token_twice(
    vllm_server: Supervised, tmp_path: Path
) -> None:
    counts = await chaos(tmp_path, 120, vllm_server)
    assert counts.wrong() == []
    assert counts.seconds >= 120
    assert set(counts.statuses) <= {"completed", "truncated", "failed"}
    assert counts.statuses["completed"] > 0
