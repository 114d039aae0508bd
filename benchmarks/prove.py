"""The claims that take hours: gain over three seeds, controls, forks, a store alone, a limit, kills, vLLM and chaos around it,
a front of policies, a reward model. `make prove`.

Prints one line a run and writes `runs/prove.json`, from which the README's table is taken.
"""

import argparse
import asyncio
import json
import math
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import pareto, reward_model
from benchmarks.chaos import chaos
from benchmarks.kill_store import kill_after
from stateset_agents.evaluation import paired_gain
from stateset_agents.traces.store import TraceStore

RUNS = Path("runs/prove")
SEEDS = (1, 2, 3)


def cli(name: str, *command: str) -> Path:
    """One command of ours, unless it was run already; its folder."""
    out = RUNS / name
    if not [*out.glob("*/summary.json"), *out.glob("*/evaluation.json")]:
        subprocess.run(
            [sys.executable, "-m", "stateset_agents", *command, "--out", str(out)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    (run,) = out.glob("*")
    return run


def job(name: str, *options: str) -> dict[str, Any]:
    """One training run by the command line; its summary."""
    out = RUNS / name
    if not list(out.glob("*/summary.json")):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "stateset_agents", "train", "--out", str(out), *options],
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
    if list(out.glob("*/summary.json")):
        kills = 0
    command = [sys.executable, "-m", "stateset_agents", "train", "--out", str(out), *options]
    for number in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(20, 100))
        process.send_signal(signal.SIGKILL)
        process.wait()
        (run,) = [p for p in out.iterdir() if (p / "config.json").is_file()]
        done = len(list((run / "steps").glob("[0-9]*"))) if (run / "steps").exists() else 0
        print(f"{name}: kill {number + 1} of {kills}, {done} checkpoints on disk", flush=True)
        command = [sys.executable, "-m", "stateset_agents", "train", "--resume", str(run)]
    return job(name) if kills == 0 else _finished(out, command)


def _finished(out: Path, command: list[str]) -> dict[str, Any]:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads(next(out.glob("*/summary.json")).read_text())
    return summary


def trained_on(name: str) -> list[tuple[list[str], int]]:
    """For each step of a run, the scenarios it trained on and the episodes in the trace store."""
    (run,) = (path.parent for path in (RUNS / name).glob("*/summary.json"))
    newest = max((run / "steps").glob("[0-9]*"))
    log = json.loads((newest / "log.json").read_text())
    with TraceStore(run / "traces.db", create=False) as store:
        counts: dict[Any, Any] = dict(
            store.read("SELECT step, COUNT(*) FROM runs WHERE phase = 'train' GROUP BY step")
        )
    return [(line["scenarios"], counts[line["step"]]) for line in log]


def outcomes(name: str) -> list[float]:
    """Success after training, a held-out scenario each."""
    (path,) = (RUNS / name).glob("*/after.json")
    outcomes_after: list[float] = json.loads(path.read_text())["outcomes"]
    return outcomes_after


def two_proportions(first: float, two: float, count: int) -> float:
    """p-value of equal shares in two samples of `count` each (pooled z-test, two-sided)."""
    pooled = (first + two) / 2
    spread = math.sqrt(max(1e-12, 2 * pooled * (1 - pooled) / count))
    return math.erfc(abs(first - two) / spread / math.sqrt(2))


def store_alone(seed: int, held_out: int) -> dict[str, float]:
    """As many episodes as a training run plays, all of version 0, and what is learned from them without a policy server."""
    store = cli(f"collected-{seed}", "collect", "--seed", str(seed))
    run = cli(
        f"store-{seed}", "train", "--from-traces", str(store), "--seed", str(seed), *OFF_POLICY
    )
    measured = cli(
        f"store-{seed}-measured", "evaluate", "--policy", str(run), "--held-out", str(held_out), "--seed", str(seed)
    )  # fmt: skip
    result = json.loads((measured / "evaluation.json").read_text())
    return {"success_after": result["success"]}


OFF_POLICY = ("--importance", "tapered", "--epochs", "2", "--steps", "64")


def recorded_kills(count: int) -> bool:
    """A run on a store killed at random moments, and one that is not: whether their weights are the same to the bit."""
    store, rng = cli("collected-1", "collect", "--seed", "1"), random.Random(0)
    copies = [RUNS / "killed-stores" / name for name in ("calm", "killed")]
    for copy in copies:
        shutil.copytree(store, copy, dirs_exist_ok=True)
    options = ["--groups", "2", "--steps", "60", "--lora-dropout", "0.1", "--log", "none"]
    calm = cli("calm", "train", "--from-traces", str(copies[0]), *options)
    out = RUNS / "recorded-killed"
    command = [
        sys.executable,
        "-m",
        "stateset_agents",
        "train",
        "--from-traces",
        str(copies[1]),
        *options,
        "--out",
        str(out),
    ]
    for number in range(count):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = 3 * number + 1
        while not list(out.glob(f"*/steps/{wanted:06d}")) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        (run,) = out.iterdir()
        print(f"recorded: kill {number + 1} of {count}", flush=True)
        command = [sys.executable, "-m", "stateset_agents", "train", "--resume", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ends = [(place / "adapter" / "adapter_model.safetensors").read_bytes() for place in (calm, run)]
    return ends[0] == ends[1]


def store_kills(count: int) -> list[str]:
    """A recording process killed at random moments; what was lost of what it had acknowledged."""
    rng, lost = random.Random(0), []
    for number in range(count):
        after = rng.randint(1, 2000)
        with tempfile.TemporaryDirectory() as folder:
            wrong = kill_after(Path(folder), after)
        print(
            f"store: kill {number + 1} of {count} after {after} calls: {wrong or 'nothing lost'}",
            flush=True,
        )
        if wrong:
            lost.append(wrong)
    return lost


def on_another_engine(
    name: str, run: dict[str, Any], here: dict[str, Any], count: int
) -> dict[str, Any]:
    """A run on vLLM beside the same on the embedded engine: whether results differ, and how near to the trainer the tokens were."""
    (path,) = (RUNS / name).glob("*/log.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        "success_after": [here["success_after"], run["success_after"]],
        "p_differs": two_proportions(here["success_after"], run["success_after"], count),
        "farthest_ratio": max(abs(line["ratio"] - 1) for line in lines),
        "most_sampler_kl": max(line["sampler_kl"] for line in lines),
        "prefix_hits": statistics.median(line["prefix_hits"] for line in lines),
    }


def chaos_of(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        counts = asyncio.run(chaos(Path(folder), seconds))
    return {**asdict(counts), "wrong": counts.wrong()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--store-kills", type=int, default=50)
    parser.add_argument("--recorded-kills", type=int, default=20)
    parser.add_argument("--chaos-seconds", type=float, default=1200)
    parser.add_argument(
        "--at-once", type=int, default=1, help="Runs side by side; no timing is read."
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    count = ("--held-out", str(options.held_out))
    lost = store_kills(options.store_kills)
    with ThreadPoolExecutor(options.at_once) as pool:
        trained = {
            seed: pool.submit(job, f"seed-{seed}", "--seed", str(seed), *count) for seed in SEEDS
        }
        rejected = {
            seed: pool.submit(
                job, f"rejection-{seed}", "--seed", str(seed), "--algorithm", "rejection", *count
            )
            for seed in SEEDS
        }
        forked = {
            seed: pool.submit(job, f"forks-{seed}", "--seed", str(seed), "--forks", "6", *count)
            for seed in SEEDS
        }
        alone = {seed: pool.submit(store_alone, seed, options.held_out) for seed in SEEDS}
        limited = pool.submit(
            job, "limit", "--forks", "6", "--reward", "outcome", "--limit", "violations=0.02", "--held-out", "600"
        )  # fmt: skip
        no_signal = pool.submit(job, "shuffled-rewards", "--shuffle-rewards", *count)
        disturbed = pool.submit(killed_job, "killed", options.kills, *count)
        on_vllm = pool.submit(job, "vllm", "--engine", "vllm", *count)
    seeds = {seed: future.result() for seed, future in trained.items()}
    rejection = {seed: future.result() for seed, future in rejected.items()}
    shuffled, killed = no_signal.result(), disturbed.result()
    forks = {seed: future.result() for seed, future in forked.items()}
    stores = {seed: future.result() for seed, future in alone.items()}
    limit = limited.result()
    ahead, ahead_ci95 = paired_gain(
        [bit for seed in SEEDS for bit in outcomes(f"rejection-{seed}")],
        [bit for seed in SEEDS for bit in outcomes(f"seed-{seed}")],
    )
    p = two_proportions(killed["success_after"], seeds[1]["success_after"], options.held_out)
    vllm = on_vllm.result()
    result = {
        "vllm": on_another_engine("vllm", vllm, seeds[1], options.held_out),
        "chaos": chaos_of(options.chaos_seconds),
        "median_gain": statistics.median(s["gain"] for s in seeds.values()),
        "lowest_interval": min(s["gain_ci95"][0] for s in seeds.values()),
        "shuffled_gain": shuffled["gain"],
        "rejection_gains": [s["gain"] for s in rejection.values()],
        "grpo_ahead_of_rejection": ahead,
        "grpo_ahead_of_rejection_ci95": ahead_ci95,
        "greedy": {s: [r["greedy_before"], r["greedy_after"]] for s, r in seeds.items()},
        "by_intent": {s: r["success_by_intent"] for s, r in seeds.items()},
        "forks_success": {
            s: [seeds[s]["success_after"], r["success_after"]] for s, r in forks.items()
        },
        "forks_tokens": {
            s: r["tokens_sampled"] / seeds[s]["tokens_sampled"] for s, r in forks.items()
        },
        "store_alone_share_of_the_gain": {
            s: (r["success_after"] - seeds[s]["success_before"]) / seeds[s]["gain"]
            for s, r in stores.items()
        },
        "limit_broken": [limit["violations_before"], limit["violations_after"], limit["held_out"]],
        "limit_success": [limit["success_before"], limit["success_after"]],
        "recorded_kills_same_to_the_bit": recorded_kills(options.recorded_kills),
        "killed_success": killed["success_after"],
        "undisturbed_success": seeds[1]["success_after"],
        "p_killed_differs": p,
        "store_kills": options.store_kills,
        "store_lost": lost,
        "weightings_on_the_front": pareto.main(RUNS / "pareto"),
        "reward_model_ranks": asyncio.run(reward_model.main(RUNS / "reward-model")),
        "killed_trained_on_the_same": trained_on("killed") == trained_on("seed-1"),
    }
    Path("runs/prove.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
