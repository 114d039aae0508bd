"""A stored trace reads back equal; what was acknowledged is on disk; other files are refused."""

import sqlite3
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateset_agents.errors import BadInput
from stateset_agents.reward import Score
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.store import TraceStore

CALLS = st.integers(1, 30).flatmap(
    lambda n: st.builds(
        ModelCall,
        response_id=st.uuids().map(str),
        node=st.sampled_from(["policy", "plan"]),
        prompt_ids=st.lists(st.integers(0, 1023), min_size=1, max_size=50).map(tuple),
        sampled_ids=st.tuples(*[st.integers(0, 1023)] * n),
        logprobs=st.tuples(*[st.floats(-20, 0)] * n),
    )
)


@settings(max_examples=25, deadline=None)
@given(calls=st.lists(CALLS, max_size=4), said=st.text(max_size=40))
def test_a_stored_trace_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, calls: list[ModelCall], said: str
) -> None:
    trace = Trace(model_calls=tuple(calls), messages=({"role": "user", "content": said},))
    with TraceStore(tmp_path_factory.mktemp("store") / "traces.db") as store:
        store.append(trace, phase="p", step=1, score=Score(value=0.5)).result(10)
        assert list(store.traces()) == [trace]
        assert store.get(trace.id[:8]) == trace
        assert store.newest()[0]["reward"] == 0.5


def test_an_acknowledged_trace_is_on_disk_before_the_store_is_closed(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db")
    trace = Trace()
    store.append(trace).result(10)
    reader = sqlite3.connect(tmp_path / "traces.db")
    ((run, head),) = reader.execute("SELECT id, head FROM runs").fetchall()
    reader.close()
    assert run == trace.id
    assert Trace.model_validate_json(zlib.decompress(head)) == trace
    store.close()


def test_steps_that_were_not_committed_are_discarded(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        for step in (1, 2, 3):
            store.append(Trace(), phase="train", step=step).result(10)
        store.append(Trace(), phase="before").result(10)
        store.discard_from("train", 2)
        assert store.count("train") == 1
        assert store.count() == 2


def test_a_trace_that_is_there_already_is_an_error_of_its_append(tmp_path: Path) -> None:
    trace = Trace()
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(trace).result(10)
        with pytest.raises(sqlite3.IntegrityError):
            store.append(trace).result(10)


def test_what_is_no_store_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="found none"):
        TraceStore(tmp_path / "missing.db", create=False)
    (tmp_path / "text.db").write_text("no database, but long enough to be taken for one " * 40)
    with pytest.raises(BadInput, match="Expected a trace store"):
        TraceStore(tmp_path / "text.db")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(BadInput, match="version 99"):
        TraceStore(tmp_path / "newer.db")
