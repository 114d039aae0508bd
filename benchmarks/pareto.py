"""Margin and customer satisfaction in conflict: three weightings, three policies, one front.

python -m benchmarks.pareto [FOLDER]          # about 12 minutes on two cores
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

WEIGHTS = ("gross_margin=1", "csat=0.4,gross_margin=0.6", "csat=1")
OBJECTIVES = ("csat", "gross_margin")


def main(folder: Path) -> bool:
    """Train and compare; whether all three are on the front."""
    runs = []
    folder.mkdir(parents=True, exist_ok=True)
    for weights in WEIGHTS:
        out = folder / weights.replace("=", "-").replace(",", "-")
        subprocess.run(
            [sys.executable, "-m", "stateset_agents", "train", "--steps", "14", "--groups", "8", "--group-size", "8",
             "--held-out", "150", "--reward", f"objectives:{weights}", "--out", str(out)],
            check=True,
        )  # fmt: skip
        runs.append(next(out.iterdir()))
    from stateset_agents.reporting.html import write_pareto
    from stateset_agents.reporting.kpi import front, point
    from stateset_agents.traces.store import TraceStore

    points = []
    for weights, run in zip(WEIGHTS, runs, strict=True):
        with TraceStore(run / "traces.db", create=False) as store:
            points.append(point(weights, store.traces(phase="after"), OBJECTIVES))
    points = front(points)
    write_pareto(points, OBJECTIVES, folder / "pareto.html")
    for policy in points:
        print(
            json.dumps(
                {
                    "weights": policy.name,
                    **dict(zip(OBJECTIVES, policy.means, strict=True)),
                    "front": not policy.dominated,
                }
            )
        )
    print(f"plot in {folder / 'pareto.html'}")
    return not any(policy.dominated for policy in points)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if sys.argv[1:] else Path(tempfile.mkdtemp(prefix="pareto-"))
    sys.exit(0 if main(where) else 1)
