"""One scenario before and after training, to read."""

from pathlib import Path

from stateset_agents.trace import Trace
from stateset_agents.traces.store import TraceStore


def best_pair(run: Path) -> tuple[Trace, Trace] | None:
    """The same scenario before and after: if possible a failure that became a success; None if nothing was measured twice."""
    with TraceStore(run / "traces.db", create=False) as store:
        after = {t.scenario.id: t for t in store.traces(phase="after") if t.scenario}
        pairs = [
            (trace, after[trace.scenario.id])
            for trace in store.traces(phase="before")
            if trace.scenario and trace.scenario.id in after
        ]
    return max(pairs, key=_gain, default=None)


def _gain(pair: tuple[Trace, Trace]) -> int:
    before, after = (trace.goal_score for trace in pair)
    if before is None or after is None:
        return 0
    return int(after.success) - int(before.success) + int(bool(pair[1].changes))
