"""The engine as a child process: started on a free port, watched until healthy, ended with its parent."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp

from stateset_agents.errors import BadInput, PolicyUnreachable

START_SECONDS = 120


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def running_engine(
    model: str,
    *,
    log: Path,
    threads: int = 1,
    adapters: Mapping[str, str] | None = None,
    slots: int = 96,
) -> AsyncIterator[str]:
    """Serve `model` on loopback while the block runs; yields the base URL, which ends in `/v1`.

    Raises BadInput where the model cannot be served and PolicyUnreachable where the engine dies.
    """
    port = free_port()
    command = [
        sys.executable, "-m", "stateset_agents.server.engine", "--model", model, "--port", str(port),
        "--threads", str(threads), "--slots", str(slots), "--with-parent",
    ]  # fmt: skip
    for name, path in (adapters or {}).items():
        command += ["--adapter", f"{name}={path}"]
    # Two processes share few cores: a thread that spins while it waits takes the other's time.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 (returns at once; waiting is done elsewhere)
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await _healthy(url, process, log)
        yield f"{url}/v1"
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


async def _healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines() or ["no output"]
                if process.returncode == 2:
                    raise BadInput(last[-1])
                raise PolicyUnreachable(
                    f"Expected a running engine, found that it ended with {process.returncode}: "
                    f"{last[-1]} (all of it in {log})"
                )
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise PolicyUnreachable(f"Expected a healthy engine within {START_SECONDS} s; see {log}.")


def port_is_free(host: str, port: int) -> None:
    """Raises BadInput where something else listens on a port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(
                f"Expected port {port} on {host} to be free, found: {error.strerror}. Give --port."
            ) from None
