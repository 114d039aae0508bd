"""`chat` shows the customer's role, the agent's words, and each tool call as it happens."""

import os
import subprocess
import sys


def test_a_conversation_in_the_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stateset_agents", "chat", "--seed", "1"],
        input="Please cancel my order.\nOrder W1234, zip 12345.\n\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "You are a customer" in done.stdout
    assert "agent    " in done.stdout
    assert "calls    verify_identity" in done.stdout
    assert "no_match" in done.stdout
