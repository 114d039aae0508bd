"""Runs the speed benchmarks of the project and writes their tables: `python scripts/benchmark.py [--out benchmarks.md] [NAME …]`.

Ratios within one run are what counts; absolute times are of the machine that is named above the table.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = ("world", "rollout", "traces", "rewards", "trainer", "serving")


def run(name: str) -> tuple[str, float]:
    """What one benchmark prints, and the seconds it took. Raises CalledProcessError where it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "140", "NO_COLOR": "1"},
    )  # fmt: skip
    return done.stdout, time.perf_counter() - began


def rows(output: str) -> list[list[str]]:
    """The cells of the tables in a benchmark's output."""
    table = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃|]", line)[1:-1]]
        if len(cells) > 1 and any(cells) and not set("".join(cells)) <= set("-━ "):
            table.append(cells)
    return table


def table(name: str, output: str, seconds: float) -> str:
    """A benchmark as Markdown."""
    cells = rows(output)
    if not cells:
        return f"## {name}\n\n```\n{output.strip()}\n```\n"
    width = max(map(len, cells))
    padded = [[*row, *[""] * (width - len(row))] for row in cells]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    lines.insert(1, "|" + "---|" * width)
    return f"## {name} ({seconds:.0f} s)\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.md"))
    options = parser.parse_args()
    wrong = sorted(set(options.names) - set(BENCHMARKS))
    if wrong:
        parser.error(f"expected some of {', '.join(BENCHMARKS)}, found {wrong[0]!r}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    command = " ".join(["python scripts/benchmark.py", *options.names])
    parts = [f"# Benchmarks\n\n{machine}, `{command}`\n"]
    for name in options.names or BENCHMARKS:
        print(f"{name} …", end=" ", flush=True)
        try:
            output, seconds = run(name)
        except subprocess.CalledProcessError as error:
            print("failed")
            sys.exit(f"benchmarks.{name} failed: {error.stderr.strip().splitlines()[-1]}")
        print(f"{seconds:.0f} s", flush=True)
        parts.append(table(name, output, seconds))
        options.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"one table in {options.out}")


if __name__ == "__main__":
    main()
