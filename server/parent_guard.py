"""Runs a command for as long as its parent lives: `python parent_guard.py COMMAND…`.

Standard input closes when the parent ends; the command and its children are then asked to stop, and killed after a while.
Imports nothing of ours: it runs beside every policy server and weighs next to nothing.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 15


def _die_with_guard() -> None:
    """Also end it if the guard itself is killed (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def main() -> int:
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_guard,  # noqa: PLW1509 (no thread runs yet)
    )

    def stop() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
            os.killpg(child.pid, signal.SIGCONT)  # one that was stopped hears nothing
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
        _kill(child.pid)

    def until_parent_ends() -> None:
        while os.read(0, 4096):
            pass
        stop()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop, daemon=True).start())
    threading.Thread(target=until_parent_ends, daemon=True).start()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(0.2)  # in slices, so that signals are heard
            break
    _kill(child.pid)  # what it left behind
    return code if code >= 0 else 128 - code


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
