"""The command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def run(*arguments: str, cwd: Path | None = None, status: int = 0) -> str:
    """Output of a command; on an error, its one line."""
    done = subprocess.run(
        [sys.executable, "-m", "stateset_agents", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr.strip()
