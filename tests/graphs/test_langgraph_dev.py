"""`langgraph dev` loads langgraph.json: every graph is there, and one of them answers with its schema."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.server.supervisor import free_port
from tests import ROOT

COMMAND = shutil.which(
    "langgraph", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.skipif(COMMAND is None, reason="langgraph-cli is not installed")
def test_every_graph_is_served(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    quiet = {**os.environ, "LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(COMMAND), "dev", "--no-browser", "--no-reload", "--port", str(port)],
            cwd=ROOT, env=quiet, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        for _ in range(240):
            try:
                ask(f"{url}/ok")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.25)
        assistants = ask(f"{url}/assistants/search", {"limit": 50})
        assert {row["graph_id"] for row in assistants} == {*DOMAINS, "orchestrator"}
        service = next(row for row in assistants if row["graph_id"] == "service")
        drawn = ask(f"{url}/assistants/{service['assistant_id']}/graph")
        assert {"identity", "policy", "tools", "confirm"} <= {node["id"] for node in drawn["nodes"]}
    finally:
        server.terminate()
        server.wait(20)
