"""How a run ended: an episode that fails or is cut off is data, and never an exception of the roll-out."""

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from langgraph.errors import GraphRecursionError

from stateset_agents.errors import ContextFull, PolicyUnreachable
from stateset_agents.trace import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The final state (empty if the run failed) and the status."""

    state: dict[str, Any]
    status: Status
    error: str | None
    started: float
    """Unix time."""
    seconds: float


async def result_of(run: Awaitable[dict[str, Any]]) -> RunResult:
    """Wait for a graph run and report how it ended; it never raises."""
    started, clock = time.time(), time.perf_counter()
    state: dict[str, Any] = {}
    status: Status = "completed"
    error = None
    try:
        state = await run or {}  # a graph that writes none of its output gives None
    except (GraphRecursionError, ContextFull) as problem:
        status, error = "truncated", str(problem)
    except PolicyUnreachable as problem:
        status, error = "failed", str(problem)
    except Exception as problem:  # noqa: BLE001 (one episode's failure is data, not the run's end)
        status, error = "failed", f"{type(problem).__name__}: {problem}"
    seconds = time.perf_counter() - clock
    return RunResult(state=state, status=status, error=error, started=started, seconds=seconds)
