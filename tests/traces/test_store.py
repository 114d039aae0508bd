"""A stored trace reads back equal, on SQLite and PostgreSQL; what was acknowledged is on disk; storage is linear."""

import sqlite3
import subprocess
import sys
import time
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateset_agents.errors import BadInput
from stateset_agents.jobs.registry import find_reward
from stateset_agents.reward import Score
from stateset_agents.rewards.feedback import FeedbackReward
from stateset_agents.trace import Feedback, ModelCall, ToolCall, Trace
from stateset_agents.traces.codec import digest
from stateset_agents.traces.export import export, load
from stateset_agents.traces.lineage import certify, problems
from stateset_agents.traces.retention import SIZES, forget, prune
from stateset_agents.traces.store import TraceStore
from tests.calls import talk

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
@given(calls=st.lists(CALLS, max_size=4), text=st.text(max_size=40))
def test_a_stored_trace_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, calls: list[ModelCall], text: str
) -> None:
    trace = Trace(model_calls=tuple(calls), messages=({"role": "user", "content": text},))
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


def test_both_databases_keep_traces_alike(place: str) -> None:
    whole = Trace(thread="t", customer="C1", model_calls=talk(6, texts=True), started=1.0)
    used = ToolCall(id="c", name="stock", arguments={"sku": "P1"}, status="done", result="7")
    with TraceStore(place) as store:
        store.append(whole, phase="p", score=Score(value=0.5))
        grows = Trace(thread="t", started=2.0)
        store.begin(grows)
        for number, call in enumerate(talk(3)):
            store.add_call(grows.id, number, partial(ModelCall.model_copy, call))
        store.add_tool(grows.id, lambda: used)
        store.discard(grows.id, [1])
        store.flush()
        first, unended = store.traces()
        assert first == whole
        assert (unended.status, len(unended.model_calls), len(unended.calls)) == (
            "interrupted",
            3,
            2,
        )
        store.end(
            grows.id,
            lambda: grows.model_copy(update={"messages": ({"role": "user", "content": "x"},)}),
        )
        store.flush()
        ended = store.get(grows.id)
        assert (ended.status, ended.exactness, ended.tool_calls) == ("completed", "exact", (used,))
        assert store.thread("t").model_calls == (*whole.model_calls, *ended.model_calls)
        assert list(problems(store)) == []
    with TraceStore(place, create=False) as again:
        assert again.count() == 2


def test_a_run_of_96_calls_that_grows_by_60_tokens_takes_less_than_100_kb(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(Trace(model_calls=talk(96)))
        store.flush()
        ((_, size),) = store.read(SIZES)
    assert size < 100_000
    with TraceStore(tmp_path / "texts.db") as store:
        for calls in (24, 48, 96):
            store.append(Trace(model_calls=talk(calls, texts=True), started=float(-calls)))
        store.flush()
        small, middle, large = (size for _, size in store.read(SIZES))
    assert large / middle < 2.2
    assert middle / small < 2.2


def test_feedback_comes_at_any_later_time_and_becomes_a_reward(place: str) -> None:
    first, two = Trace(thread="a", model_calls=talk(2)), Trace(thread="b")
    with TraceStore(place) as store:
        store.append(first)
        store.append(two)
        store.flush()
        assert store.feedback("csat", 4, response="r2-1", comment="nice") == 1
        assert store.feedback("csat", 2, thread="a") == 1
        assert store.feedback("thumbs", 1, trace=two.id[:10]) == 1
        with pytest.raises(BadInput, match="nobody"):
            store.feedback("csat", 1, thread="nobody")
        with pytest.raises(BadInput, match="Expected one of"):
            store.feedback("csat", 1, thread="a", trace=first.id)
        graded = {t.thread: FeedbackReward("csat", low=1, high=5).score(t) for t in store.traces()}
    assert graded["b"] is None
    assert graded["a"] is not None
    assert graded["a"].value == 0.5
    named = find_reward("feedback:csat:1:5")
    assert isinstance(named, FeedbackReward)
    assert (named.key, named.low, named.high) == ("csat", 1.0, 5.0)
    with pytest.raises(BadInput, match="feedback:KEY"):
        find_reward("feedback:csat:1")


def test_a_customer_is_forgotten_and_the_adapters_are_named(place: str) -> None:
    mine = Trace(
        customer="C1", model_calls=talk(2), messages=({"role": "user", "content": "secret-words"},)
    )
    other = Trace(customer="C2", model_calls=talk(3))
    with TraceStore(place) as store:
        for trace in (mine, other):
            store.append(trace)
            rows = [(trace.id, n, call) for n, call in enumerate(trace.model_calls)]
            certify(store, f"policy-{trace.customer}", rows)
        store.flush()
        assert forget(store, "C1") == (1, ["policy-C1"])
        assert [trace.customer for trace in store.traces()] == ["C2"]
        assert list(store.read("SELECT COUNT(*) FROM calls")) == [(3,)]
        assert list(problems(store)) == []
        with pytest.raises(BadInput, match="''"):
            forget(store, "")


def test_what_is_forgotten_is_gone_from_the_file(tmp_path: Path) -> None:
    message = {"role": "user", "content": "Ask for Zebulon"}
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(Trace(customer="Zebulon-7", messages=(message,)))
        store.flush()
        forget(store, "Zebulon-7")
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"Zebulon" not in left


def test_retention_by_age_and_by_size(place: str) -> None:
    now = time.time()
    with TraceStore(place) as store:
        for days in (100, 50, 10, 1):
            store.append(Trace(started=now - days * 86_400, model_calls=talk(20)))
        store.flush()
        assert prune(store, days=60) == 1
        if place.startswith("postgresql"):
            sizes = [size for _, size in store.read(SIZES)]
            assert prune(store, megabytes=sum(sizes[:2]) / 1e6) == 1
            assert [round((now - t.started) / 86_400) for t in store.traces()] == [10, 1]


def test_pruning_by_size_makes_the_file_that_small(tmp_path: Path) -> None:
    file = tmp_path / "traces.db"
    with TraceStore(file) as store:
        for number in range(60):
            store.append(Trace(started=float(number), model_calls=talk(20)))
        store.flush()
        assert prune(store, megabytes=1000.0) == 0
        before = file.stat().st_size
        assert prune(store, megabytes=before / 2e6) > 0
        assert file.stat().st_size <= before * 0.6
        kept = [trace.started for trace in store.traces()]
        assert kept
        assert max(kept) == 59


def test_a_certificate_catches_a_token_that_was_changed(place: str) -> None:
    trace = Trace(model_calls=talk(4))
    with TraceStore(place) as store:
        store.append(trace)
        certify(
            store, "policy-1", [(trace.id, n, call) for n, call in enumerate(trace.model_calls)]
        )
        store.flush()
        assert list(problems(store)) == []
        sampled = bytearray(next(store.read("SELECT sampled FROM calls WHERE number = 2"))[0])
        sampled[0] ^= 1
        store._writer.put(
            lambda: [("UPDATE calls SET sampled = ? WHERE number = 2", (bytes(sampled),))]
        ).result()
        listed = list(problems(store))
        assert len(listed) == 2  # the call, and the one whose prompt goes on from it
        assert "call 2 (r4-2)" in listed[0]
        changed = store.get(trace.id).model_calls[2]
        row = ("UPDATE calls SET digest = ? WHERE number = 2", (digest(changed),))
        store._writer.put(lambda: [row]).result()
        assert any("policy-1 learned from call 2" in problem for problem in problems(store))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_store_is_exported_and_imported_equal(tmp_path: Path, ending: str) -> None:
    text = Feedback(key="csat", value=4.0, at=5.0)
    traces = [
        Trace(model_calls=talk(3, texts=True), started=1.0, feedback=(text,)),
        Trace(status="failed", error="no \u2603", started=2.0),
    ]
    file = tmp_path / f"traces.{ending}"
    with TraceStore(tmp_path / "one.db") as store:
        for step, trace in enumerate(traces):
            store.append(trace, phase="p", step=step, score=Score(value=step / 4, reason="so"))
        store.flush()
        assert export(store, file) == 2
        before = list(store.graded())
    with TraceStore(tmp_path / "two.db") as store:
        assert load(store, file) == (2, 0)
        assert list(store.graded()) == before
        assert load(store, file) == (0, 2)


def test_a_file_that_was_cut_off_is_refused_whole(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    with TraceStore(tmp_path / "one.db") as store:
        for _ in range(3):
            store.append(Trace(model_calls=talk(2)))
        store.flush()
        export(store, file)
    lines = file.read_text().splitlines(keepends=True)
    for cut in ("".join(lines[:2]), "".join(lines)[:-40], "".join(lines[:1]) + lines[3]):
        file.write_text(cut)
        with TraceStore(tmp_path / "two.db") as store:
            with pytest.raises(BadInput, match="expected a"):
                load(store, file)
            assert store.count() == 0


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    trace = Trace(model_calls=talk(3))
    old = sqlite3.connect(path)
    old.executescript(VERSION_1)
    body = zlib.compress(trace.model_dump_json().encode())
    row = (
        trace.id,
        "train",
        4,
        None,
        None,
        "completed",
        "exact",
        "v0",
        None,
        0.5,
        0.0,
        body,
        '{"value": 0.5}',
    )
    old.execute(f"INSERT INTO traces VALUES({', '.join('?' * 13)})", row)
    old.commit()
    old.close()
    with TraceStore(path) as store:
        assert list(store.graded()) == [
            ("train", 4, '{"value": 0.5, "parts": {}, "reason": ""}', trace)
        ]
    with TraceStore(path) as store:
        assert store.count("train") == 1


VERSION_1 = """
CREATE TABLE traces(
  id TEXT PRIMARY KEY, phase TEXT NOT NULL, step INTEGER NOT NULL, scenario TEXT, intent TEXT,
  status TEXT NOT NULL, exactness TEXT NOT NULL, version TEXT NOT NULL, success INTEGER, reward REAL,
  started REAL NOT NULL, body BLOB NOT NULL, score TEXT);
CREATE INDEX traces_by_phase ON traces(phase, step);
PRAGMA user_version = 1;
"""


def test_a_reader_is_not_in_the_writers_way(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        for _ in range(50):
            store.append(Trace(model_calls=talk(1)))
        store.flush()
        reading = store.traces()
        next(reading)
        store.append(Trace()).result(10)
        assert sum(1 for _ in reading) == 49
        assert store.count() == 51


def test_one_bad_record_is_not_the_others_loss(tmp_path: Path) -> None:
    twice = Trace()
    with TraceStore(tmp_path / "traces.db") as store:
        futures = [store.append(trace) for trace in (Trace(), twice, twice, Trace())]
        store.flush()
        assert [future.exception() is None for future in futures] == [True, True, False, True]
        assert store.count() == 3


def test_two_processes_write_one_store_and_one_thread(place: str) -> None:
    code = (
        "import sys; from stateset_agents.trace import Trace; from stateset_agents.traces.store import TraceStore\n"
        "store = TraceStore(sys.argv[1])\n"
        "for _ in range(100): store.append(Trace(thread='t', graph=sys.argv[2]))\n"
        "store.close()"
    )
    TraceStore(place).close()
    both = [subprocess.Popen([sys.executable, "-c", code, place, name]) for name in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    with TraceStore(place) as store:
        assert Counter(trace.graph for trace in store.traces(thread="t")) == {"a": 100, "b": 100}
