"""What goes wrong around a store: nothing that was acknowledged is lost, and what is lost is said."""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from stateset_agents.errors import NotExact, RunBroken
from stateset_agents.trace import ModelCall, ToolCall, Trace
from stateset_agents.traces.export import export, load
from stateset_agents.traces.lineage import certify, problems
from stateset_agents.traces.retention import forget, prune
from stateset_agents.traces.store import TraceStore
from stateset_agents.trajectory import trajectory
from tests.calls import talk


@pytest.fixture
def quiet() -> Iterator[None]:
    """What is lost is logged as an error, which is expected here."""
    logging.getLogger("stateset_agents.traces.writer").disabled = True
    yield
    logging.getLogger("stateset_agents.traces.writer").disabled = False


async def test_who_stops_waiting_does_not_stop_the_writer(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:

        async def append() -> None:
            await store.append(Trace())

        tasks = [asyncio.create_task(append()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await append()
        assert store.count() == 4


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db")
    store.close()
    store.close()
    with pytest.raises(RunBroken, match="was closed"):
        store.append(Trace())


def test_a_store_that_nobody_holds_writes_what_waits(tmp_path: Path) -> None:
    TraceStore(tmp_path / "traces.db").append(Trace())
    with TraceStore(tmp_path / "traces.db") as store:
        deadline = time.monotonic() + 10
        while store.count() == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store.count() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_was_forked_writes_too(place: str) -> None:
    with TraceStore(place) as store:
        store.append(Trace(graph="before")).result(10)
        child = os.fork()
        if child == 0:  # no assertion here: pytest must not run on in it
            try:
                store.append(Trace(graph="child")).result(10)
                store.close()
                os._exit(0)
            finally:
                os._exit(1)
        store.append(Trace(graph="parent")).result(10)
        assert os.waitpid(child, 0)[1] == 0
        assert {trace.graph for trace in store.traces()} == {"before", "child", "parent"}


def test_half_a_surrogate_is_stored_exported_and_read_again(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "half \ud83d of it"}
    calls = tuple(call.model_copy(update={"answer": message}) for call in talk(2, texts=True))
    whole = Trace(model_calls=calls, messages=(message,))
    with TraceStore(tmp_path / "one.db") as store:
        store.append(whole).result(10)
        assert list(store.traces()) == [whole]
        assert export(store, tmp_path / "traces.jsonl") == 1
    with TraceStore(tmp_path / "two.db") as store:
        assert load(store, tmp_path / "traces.jsonl") == (1, 0)
        assert list(store.traces()) == [whole]


def test_what_cannot_be_read_is_said_and_is_not_the_others_loss(tmp_path: Path) -> None:
    broken, headless, good = (Trace(model_calls=talk(3), started=float(n)) for n in range(3))
    with TraceStore(tmp_path / "traces.db") as store:
        for trace in (broken, headless, good):
            store.append(trace)
        store.flush()
        with sqlite3.connect(tmp_path / "traces.db") as db:
            db.execute("UPDATE calls SET about = x'00' WHERE run = ? AND number = 2", (broken.id,))
            db.execute("UPDATE runs SET head = x'00' WHERE id = ?", (headless.id,))
        db.close()
        first, two, three = store.traces()
        assert (first.lost, len(first.model_calls), first.exactness) == (1, 2, "text")
        assert "call 2 cannot be read" in (first.error or "")
        assert (two.id, two.lost) == (headless.id, 1)
        assert three == good
        with pytest.raises(NotExact, match="could not be stored or read"):
            trajectory(first)
        assert export(store, tmp_path / "traces.jsonl") == 3
        listed = list(problems(store))
        assert len(listed) == 2
        assert "call 2 cannot be read" in listed[0]


def test_a_call_that_is_lost_is_counted_and_the_others_keep_their_numbers(
    place: str, quiet: None
) -> None:
    run = Trace()

    def breaks() -> ModelCall:
        raise ValueError("not a call")

    calls = talk(4)
    with TraceStore(place) as store:
        store.begin(run)
        store.add_call(run.id, 0, lambda: calls[0])
        lost = store.add_call(run.id, 1, breaks)
        store.add_call(run.id, 2, lambda: calls[2])
        store.add_call(run.id, 3, lambda: calls[3])
        store.discard(run.id, [2])
        store.end(run.id, partial(Trace.model_copy, run))
        store.flush()
        assert isinstance(lost.exception(10), ValueError)
        (kept,) = store.traces()
        assert [call.discarded for call in kept.model_calls] == [False, True, False]
        assert [c.prompt_ids for c in kept.model_calls] == [calls[n].prompt_ids for n in (0, 2, 3)]
        assert (kept.lost, kept.exactness) == (1, "text")
        assert "1 of its calls could not be stored" in (kept.error or "")
        assert list(problems(store)) == []
        assert store.newest()[0]["exactness"] == "text"


def test_a_run_whose_beginning_was_lost_still_has_an_end(tmp_path: Path, quiet: None) -> None:
    run = Trace(thread="t")
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(Trace(id=run.id, thread="other")).result(10)
        with sqlite3.connect(tmp_path / "traces.db") as db:
            store.begin(run)  # the id is taken
            store.flush()
            db.execute("DELETE FROM runs")
        db.close()
        store.end(run.id, partial(Trace.model_copy, run)).result(10)
        (kept,) = store.traces()
        assert (kept.thread, kept.lost) == ("t", 1)


def test_a_database_that_goes_away_for_a_moment_is_waited_for(
    postgres_url: str, request: pytest.FixtureRequest
) -> None:
    name = f"away{os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
        with TraceStore(postgres_url.rsplit("/", 1)[0] + f"/{name}") as store:
            store.append(Trace()).result(10)
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            store.append(Trace()).result(30)
            assert store.count() == 2


def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        other = sqlite3.connect(
            tmp_path / "traces.db", isolation_level=None, check_same_thread=False
        )
        other.execute("BEGIN IMMEDIATE")
        pending = store.append(Trace())
        threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
        pending.result(20)
        other.close()


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path: Path, quiet: None) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(Trace(model_calls=talk(2))).result(10)
        pages = next(store.read("PRAGMA page_count"))[0]
        tables: Any = store._tables
        tables._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunBroken, match="full"):
            store.append(Trace(model_calls=talk(96, texts=True))).result(10)
        assert store.count() == 1
        assert list(problems(store)) == []


def test_a_customer_is_forgotten_with_what_was_said_before_it_was_known(place: str) -> None:
    with TraceStore(place) as store:
        store.append(Trace(thread="a", customer=""))
        store.append(Trace(thread="a", customer="C1"))
        store.append(Trace(thread="b", customer=""))
        store.append(Trace(thread="", customer=""))
        assert forget(store, "C1") == (2, [])
        assert store.count() == 2


def test_adapters_are_named_with_those_that_went_on_from_them_even_after_pruning(
    place: str,
) -> None:
    trace = Trace(customer="C1", model_calls=talk(1), started=1.0)
    other = Trace(customer="C2", model_calls=talk(2), started=time.time())
    with TraceStore(place) as store:
        store.append(trace)
        store.append(other)
        certify(store, "run-v1", [(other.id, 0, other.model_calls[0])], parent="base")
        certify(store, "run-v2", [(trace.id, 0, trace.model_calls[0])], parent="run-v1")
        certify(store, "run-v3", [(other.id, 1, other.model_calls[1])], parent="run-v2")
        certify(store, "next-v1", [], parent="run-v3")
        assert prune(store, days=1) == 1
        assert forget(store, "C1") == (0, ["next-v1", "run-v2", "run-v3"])
        assert forget(store, "C1") == (0, [])


def test_who_is_forgotten_does_not_come_back_by_an_import_or_by_a_run_under_way(
    tmp_path: Path,
) -> None:
    old = Trace(customer="C1", model_calls=talk(2), started=time.time() - 9)
    with TraceStore(tmp_path / "traces.db") as store:
        store.append(old)
        store.flush()
        export(store, tmp_path / "old.jsonl")
        going = Trace(customer="C1", started=time.time() - 1)
        late = Trace(thread="t", started=time.time() - 1)
        for run in (going, late):
            store.begin(run)
        assert forget(store, "C1") == (2, [])
        store.add_call(going.id, 0, lambda: talk(1)[0])
        store.add_tool(
            going.id, lambda: ToolCall(id="c", name="n", arguments={}, status="done", result="")
        )
        store.end(going.id, partial(Trace.model_copy, going))
        store.add_call(late.id, 0, lambda: talk(1)[0])
        signed_in = late.model_copy(update={"customer": "C1"})
        store.end(late.id, lambda: signed_in).result(10)
        assert store.count() == 0
        assert load(store, tmp_path / "old.jsonl") == (0, 1)
        store.append(Trace(customer="C1", started=time.time())).result(10)  # a new conversation
        assert store.count() == 1


def test_a_store_of_the_second_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    trace = Trace(customer="C1", model_calls=talk(2))
    with TraceStore(path) as store:
        store.append(trace)
        certify(store, "old-v1", [(trace.id, 0, trace.model_calls[0])])
        store.flush()
    with sqlite3.connect(path) as db:
        db.executescript(
            "DROP INDEX trained_by_customer; ALTER TABLE trained DROP COLUMN customer; DROP TABLE adapters;"
            "DROP TABLE forgotten; UPDATE about SET version = 2; PRAGMA user_version = 2;"
        )
    db.close()
    with TraceStore(path) as store:
        assert list(store.traces()) == [trace]
        assert forget(store, "C1") == (1, ["old-v1"])
