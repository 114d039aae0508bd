"""Real servers for the tests: a PostgreSQL of their own, from the binaries on the machine."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACES = (
    "/usr/local/bin",
    "/usr/bin",
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
)


def binary(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join((*PLACES, os.environ.get("PATH", ""))))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
