"""Export and import of traces as JSON lines or Parquet, without loss."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stateset_agents.errors import BadInput
from stateset_agents.files import replacing
from stateset_agents.reward import Score
from stateset_agents.trace import Trace
from stateset_agents.traces.codec import model_json
from stateset_agents.traces.store import TraceStore

BATCH = 200
"""Traces in a Parquet row group, which is held in memory."""


class Entry(BaseModel):
    """A trace with its columns in the store."""

    model_config = ConfigDict(extra="forbid")

    phase: str = ""
    step: int = 0
    score: Score | None = None
    trace: Trace


def export(store: TraceStore, file: Path, *, phase: str | None = None) -> int:
    """Write a store's traces, oldest first; returns their number. The file's ending selects the format. An existing file is
    replaced when everything is written."""
    write = {".jsonl": _to_lines, ".parquet": _to_parquet}.get(file.suffix)
    if write is None:
        raise BadInput(f"Expected a file that ends in .jsonl or .parquet, found {file.name!r}.")
    with replacing(file) as beside:
        return write(entries(store, phase), beside)


def load(store: TraceStore, file: Path) -> tuple[int, int]:
    """Put a file's traces into a store. Returns how many were new, and how many were left out: already there, or of erased
    customers. All are read before the first is stored. Raises BadInput with the line for a file that is cut off or has another
    format."""
    count = sum(1 for _ in read(file))
    there = {str(row[0]) for row in store.ids()}
    new = 0
    pending = []
    for entry in read(file):
        if entry.trace.id in there or store.is_forgotten(entry.trace):
            continue
        there.add(entry.trace.id)
        new += 1
        pending.append(
            store.append(entry.trace, phase=entry.phase, step=entry.step, score=entry.score)
        )
        if len(pending) == BATCH:
            for done in pending:
                done.result()
            pending.clear()
    for done in pending:
        done.result()
    return new, count - new


def read(file: Path) -> Iterator[Entry]:
    """The entries of an exported file, one by one."""
    if file.suffix == ".parquet":
        yield from _from_parquet(file)
    else:
        yield from _from_lines(file)


def entries(store: TraceStore, phase: str | None = None) -> Iterator[Entry]:
    """A store's traces with their phase, step and score, oldest first."""
    for trace_phase, step, score, trace in store.graded(phase=phase):
        parsed = None if score is None else Score.model_validate_json(score)
        yield Entry(phase=trace_phase, step=step, score=parsed, trace=trace)


def _to_lines(stored: Iterator[Entry], file: Path) -> int:
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for entry in stored:
            out.write(model_json(entry, exclude_defaults=True).decode() + "\n")
            count += 1
        out.write(json.dumps({"end": count}) + "\n")  # what is cut off has none
    return count


def _from_lines(file: Path) -> Iterator[Entry]:
    count, ended = 0, False
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    ended = isinstance(row, dict) and set(row) == {"end"}
                    if ended:
                        break
                    yield Entry.model_validate(row)
                except (ValueError, ValidationError) as error:
                    reason = str(error).splitlines()[0]
                    raise BadInput(
                        f"{file}, line {number}: expected a trace, found: {reason}"
                    ) from None
                count += 1
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Expected an export at {str(file)!r}, found: {error}") from None
    if not ended or row["end"] != count:
        raise BadInput(
            f"{file}: expected a last line that counts the traces, found none after {count}. It was cut off: export again."
        )


def _to_parquet(stored: Iterator[Entry], file: Path) -> int:
    arrow, parquet = pyarrow()
    text, number = arrow.string(), arrow.int64()
    columns = {
        "id": text, "thread": text, "graph": text, "status": text, "exactness": text, "intent": text,
        "success": arrow.bool_(), "reward": arrow.float64(), "started": arrow.float64(), "tokens_sampled": number,
        "entry": text,
    }  # fmt: skip
    count = 0
    schema = arrow.schema(list(columns.items()))
    with parquet.ParquetWriter(file, schema, compression="zstd") as out:
        batch: list[dict[str, Any]] = []
        for entry in stored:
            batch.append(_columns(entry))
            count += 1
            if len(batch) == BATCH:
                out.write_table(arrow.Table.from_pylist(batch, schema=schema))
                batch.clear()
        if batch:
            out.write_table(arrow.Table.from_pylist(batch, schema=schema))
    return count


def _columns(entry: Entry) -> dict[str, Any]:
    """Columns for filtering with other tools, and the whole trace as JSON."""
    trace, goal = entry.trace, entry.trace.goal_score
    return {
        "id": trace.id,
        "thread": trace.thread,
        "graph": trace.graph,
        "status": trace.status,
        "exactness": trace.exactness,
        "intent": trace.scenario.intent if trace.scenario else None,
        "success": None if goal is None else goal.success,
        "reward": None if entry.score is None else entry.score.value,
        "started": trace.started,
        "tokens_sampled": trace.tokens_sampled,
        "entry": model_json(entry, exclude_defaults=True).decode(),
    }


def _from_parquet(file: Path) -> Iterator[Entry]:
    arrow, parquet = pyarrow()
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=BATCH, columns=["entry"]):
                for text in batch.column("entry").to_pylist():
                    yield Entry.model_validate(json.loads(text))
    except (OSError, ValueError, KeyError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"Expected an export at {str(file)!r}, found: {reason}") from None


def pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise BadInput("Expected pyarrow, found none: install the extra 'parquet'.") from None
