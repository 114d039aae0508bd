"""What starts the embedded engine."""

import sys
from collections.abc import Mapping

from stateset_agents.errors import BadInput, StatesetError
from stateset_agents.server.supervisor import Launch


def launch(
    model: str,
    port: int,
    *,
    host: str = "127.0.0.1",
    name: str = "policy",
    threads: int = 1,
    slots: int = 96,
    adapters: Mapping[str, str] | None = None,
    key: str = "",
) -> Launch:
    """The engine with `model` as `name`, and adapters by their names."""
    command = [
        sys.executable, "-m", "stateset_agents.server.engine", "--model", model, "--name", name, "--host", host,
        "--port", str(port), "--threads", str(threads), "--slots", str(slots),
    ]  # fmt: skip
    for adapter, path in (adapters or {}).items():
        command += ["--adapter", f"{adapter}={path}"]
    # Two processes share few cores: a thread that spins while it waits takes the other's time.
    environment = {"OMP_WAIT_POLICY": "passive", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return Launch(
        name="the engine",
        command=tuple(command),
        url=f"http://{host}:{port}/v1",
        seconds=120,
        environment=environment | ({"STATESET_POLICY_KEY": key} if key else {}),
        explain=_explain,
    )


def _explain(code: int, lines: list[str]) -> StatesetError | None:
    return BadInput(lines[-1]) if code == 2 else None
