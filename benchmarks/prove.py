"""The claims that take an hour: gain over three seeds, two controls, ten kills. `make prove`.

Prints one line a run and writes `runs/prove.json`, from which the README's table is taken.
"""

import argparse
import json
import math
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RUNS = Path("runs/prove")


def job(name: str, *options: str) -> dict[str, Any]:
    """One training run by the command line; its summary."""
    out = RUNS / name
    if not list(out.glob("*/summary.json")):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "stateset_agents", "demo", "--out", str(out), *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        print(f"{name}: {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
    summary: dict[str, Any] = json.loads(next(out.glob("*/summary.json")).read_text())
    low, high = summary["gain_ci95"]
    print(
        f"{name}: {summary['success_before']:.3f} -> {summary['success_after']:.3f}, gain "
        f"{summary['gain']:+.3f} ({low:+.3f} to {high:+.3f}), greedy {summary['greedy_before']:.3f} -> "
        f"{summary['greedy_after']:.3f}",
        flush=True,
    )
    return summary


def killed_job(name: str, kills: int, *options: str) -> dict[str, Any]:
    """The same run, killed at random moments and resumed after each."""
    out, rng = RUNS / name, random.Random(0)
    command = [sys.executable, "-m", "stateset_agents", "demo", "--out", str(out), *options]
    for number in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(20, 100))
        process.send_signal(signal.SIGKILL)
        process.wait()
        (run,) = [p for p in out.iterdir() if (p / "config.json").is_file()]
        done = len(list((run / "steps").glob("[0-9]*"))) if (run / "steps").exists() else 0
        print(f"{name}: kill {number + 1} of {kills}, {done} checkpoints on disk", flush=True)
        command = [sys.executable, "-m", "stateset_agents", "train", "--resume", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads(next(out.glob("*/summary.json")).read_text())
    return summary


def trained_on(name: str) -> list[tuple[list[str], int]]:
    """For each step of a run, the scenarios it trained on and the episodes in the trace store."""
    (run,) = (path.parent for path in (RUNS / name).glob("*/summary.json"))
    newest = max((run / "steps").glob("[0-9]*"))
    log = json.loads((newest / "log.json").read_text())
    with sqlite3.connect(run / "traces.db") as store:
        counts = dict(
            store.execute("SELECT step, count(*) FROM traces WHERE phase = 'train' GROUP BY step")
        )
    return [(line["scenarios"], counts[line["step"]]) for line in log]


def two_proportions(one: float, two: float, count: int) -> float:
    """p-value of equal shares in two samples of `count` each (pooled z-test, two-sided)."""
    pooled = (one + two) / 2
    spread = math.sqrt(max(1e-12, 2 * pooled * (1 - pooled) / count))
    return math.erfc(abs(one - two) / spread / math.sqrt(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--at-once", type=int, default=1, help="Runs side by side; no timing is read."
    )
    options = parser.parse_args()
    count = ("--held-out", str(options.held_out))
    with ThreadPoolExecutor(options.at_once) as pool:
        first, second, third, no_signal, rejected, disturbed = (
            pool.submit(job, "seed-1", "--seed", "1", *count),
            pool.submit(job, "seed-2", "--seed", "2", *count),
            pool.submit(job, "seed-3", "--seed", "3", *count),
            pool.submit(job, "shuffled-rewards", "--shuffle-rewards", *count),
            pool.submit(job, "rejection-sampling", "--algorithm", "rejection", *count),
            pool.submit(killed_job, "killed", options.kills, *count),
        )
    seeds = {1: first.result(), 2: second.result(), 3: third.result()}
    shuffled, rejection, killed = no_signal.result(), rejected.result(), disturbed.result()
    p = two_proportions(killed["success_after"], seeds[1]["success_after"], options.held_out)
    result = {
        "median_gain": statistics.median(s["gain"] for s in seeds.values()),
        "lowest_interval": min(s["gain_ci95"][0] for s in seeds.values()),
        "shuffled_gain": shuffled["gain"],
        "rejection_gain": rejection["gain"],
        "greedy": {s: [r["greedy_before"], r["greedy_after"]] for s, r in seeds.items()},
        "by_intent": {s: r["success_by_intent"] for s, r in seeds.items()},
        "killed_success": killed["success_after"],
        "undisturbed_success": seeds[1]["success_after"],
        "p_killed_differs": p,
        "killed_trained_on_the_same": trained_on("killed") == trained_on("seed-1"),
    }
    Path("runs/prove.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
