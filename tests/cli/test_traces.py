"""`stateset-agents traces`: prove a store, move it, attach feedback, forget a person."""

import sqlite3
from pathlib import Path

from stateset_agents.trace import Trace
from stateset_agents.traces.lineage import certify
from stateset_agents.traces.store import TraceStore
from tests.calls import talk
from tests.command_line import run


def filled(folder: Path) -> Path:
    with TraceStore(folder / "traces.db") as store:
        for number in range(3):
            trace = Trace(
                id=f"{number}" * 32,
                thread=f"t{number}",
                customer=f"C{number}",
                model_calls=talk(2 + number),
            )
            store.append(trace)
            certify(store, "policy-9", [(trace.id, n, c) for n, c in enumerate(trace.model_calls)])
    return folder


def test_a_store_is_verified_and_one_altered_id_is_caught(tmp_path: Path) -> None:
    filled(tmp_path)
    assert run("traces", "verify", str(tmp_path)).endswith(
        "3 traces, 9 trained rows, no problems\n"
    )
    db = sqlite3.connect(tmp_path / "traces.db")
    ((sampled,),) = db.execute("SELECT sampled FROM calls WHERE run LIKE '1%' AND number = 1")
    altered = bytes([sampled[0] ^ 1]) + sampled[1:]
    db.execute("UPDATE calls SET sampled = ? WHERE run LIKE '1%' AND number = 1", (altered,))
    db.commit()
    db.close()
    run("traces", "verify", str(tmp_path), status=2)


def test_traces_are_moved_marked_and_forgotten(tmp_path: Path) -> None:
    place = str(filled(tmp_path))
    assert "csat 4 for 1 trace" in run("traces", "feedback", place, "csat", "4", "--thread", "t1")
    assert "3 traces in" in run("traces", "export", place, "--out", str(tmp_path / "x.parquet"))
    other = str(tmp_path / "other.db")
    assert "3 traces from" in run("traces", "import", other, str(tmp_path / "x.parquet"))
    with TraceStore(other, create=False) as store:
        assert [item.value for item in store.get("1" * 32).feedback] == [4.0]
    output = run("traces", "forget", place, "--customer", "C2")
    assert "1 traces of C2 erased" in output
    assert "policy-9 learned from them" in output
    assert "2 traces erased, 0 left" in run("traces", "prune", place, "--megabytes", "0")
    assert "--days, --megabytes" in run("traces", "prune", place, status=2)
