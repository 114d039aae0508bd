"""What breaks a run is named in one line, and what was committed stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.server.supervisor import free_port
from stateset_agents.trace import Trace
from stateset_agents.traces.store import TraceStore

SMALL = ["--groups", "2", "--group-size", "4", "--held-out", "4", "--concurrency", "8"]


def test_a_full_disk_is_an_error_of_the_append(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk that is full."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from stateset_agents.traces.store import TraceStore\n"
        "from stateset_agents.trace import Trace\n"
        "store = TraceStore(Path(sys.argv[1]))\n"
        "store.append(Trace(id='kept')).result(10)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        "try:\n"
        "    for n in range(500):\n"
        "        store.append(Trace(messages=({'role': 'user', 'content': str(n) * 5000},))).result(10)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "traces.db")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "RunBroken" in done.stdout, done.stdout + done.stderr
    assert "Make room" in done.stdout
    with TraceStore(tmp_path / "traces.db", create=False) as store:
        assert store.get("kept") == Trace(id="kept")


def listening(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on port {port}")


def begun(options: list[str], out: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """A training run with its first step behind it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stateset_agents", "train", *SMALL, *options, "--out", str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("*/steps/000001")) and time.monotonic() < deadline:
        time.sleep(0.2)
    return process


def test_a_run_goes_on_when_its_engine_is_killed(tmp_path: Path) -> None:
    process = begun(["--steps", "4"], tmp_path, {})
    guard = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    engine = subprocess.run(["pgrep", "-P", guard], capture_output=True, text=True, check=True)
    os.kill(int(engine.stdout.split()[0]), signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "the engine died" in output
    assert "the engine is back" in output


def test_a_server_that_is_gone_ends_the_run_with_a_line_and_it_can_be_resumed(
    tmp_path: Path,
) -> None:
    port = free_port()
    served = [
        sys.executable, "-m", "stateset_agents.server.engine", "--model", str(SEED_POLICY), "--port", str(port),
        "--adapters-from", str(tmp_path),
    ]  # fmt: skip
    server = subprocess.Popen(served, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = [sys.executable, "-m", "stateset_agents", "train"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "STATESET_RETRY_SECONDS": "1"}
    listening(port)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        process = begun(["--steps", "40", "--base-url", url], tmp_path, environment)
    finally:
        server.kill()
        server.wait()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "--resume" in errors.splitlines()[-1]
    (run,) = tmp_path.iterdir()
    steps = len(list((run / "steps").glob("[0-9]*")))
    stored = run / "config.json"
    config = json.loads(stored.read_text())
    stored.write_text(json.dumps(config | {"steps": steps + 1}))
    server = subprocess.Popen(served, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    listening(port)
    try:
        done = subprocess.run(
            [*command, "--resume", str(run)], env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "summary.json").read_text())["steps"] == steps + 1
