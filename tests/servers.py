"""Real servers for the tests: a PostgreSQL of their own, from the binaries on the machine."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from aiohttp import web
from fastapi import FastAPI

from stateset_agents.server import listening
from stateset_agents.server.supervisor import free_port

PLACES = (
    "/usr/local/bin",
    "/usr/bin",
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
)


def binary(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join((*PLACES, os.environ.get("PATH", ""))))


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server on loopback while the context lasts; its URL."""
    initdb, server = binary("initdb"), binary("postgres")
    assert initdb is not None
    assert server is not None
    data = folder / "data"
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # initdb refuses root
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        folder.chmod(0o777)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    port = free_port()
    subprocess.run(
        [initdb, "-D", str(data), "-U", "stateset", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True, stdout=subprocess.DEVNULL, **user,
    )  # fmt: skip
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(
            [server, "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             "-c", f"unix_socket_directories={folder}", "-c", "fsync=off", "-c", "max_connections=120"],
            stdout=log, stderr=log, **user,
        )  # fmt: skip
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"postgresql://stateset@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(30)


class Running:
    """The app on a real port."""

    def __init__(self, app: FastAPI) -> None:
        self.port = free_port()
        self.server = uvicorn.Server(listening.config(app, "127.0.0.1", self.port))

    async def __aenter__(self) -> str:
        self.task = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aexit__(self, *error: object) -> None:
        self.server.should_exit = True
        await self.task


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}/v1"
    await runner.cleanup()
