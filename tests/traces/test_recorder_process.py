"""Whole processes: a script that never closes its store, and one that a variable records."""

import os
import subprocess
import sys
from pathlib import Path

from stateset_agents.traces.store import TraceStore
from tests import ROOT

ENDS = """
import sys
from stateset_agents.traces.record import record
from stateset_agents.traces.store import TraceStore
from tests.patterns import react

made = react()
graph = record(made.graph, TraceStore(sys.argv[1]))
graph.invoke(made.inputs[0])
"""


def test_a_script_that_never_closes_its_store_loses_nothing(tmp_path: Path) -> None:
    root = ROOT
    made = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path / "traces.db")],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    with TraceStore(tmp_path / "traces.db", create=False) as store:
        (trace,) = store.traces()
    assert (trace.status, len(trace.model_calls), len(trace.tool_calls)) == ("completed", 2, 1)


APP = """
import stateset_agents
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from tests.patterns import Scripted

model = Scripted(answer=lambda messages: "hello")
graph = StateGraph(MessagesState)
graph.add_node("only", lambda state: {"messages": [model.invoke(state["messages"])]})
graph.add_edge(START, "only")
made = graph.compile()
for _ in range(3):
    made.invoke({"messages": [("user", "hi")]})
"""


def test_a_whole_process_is_recorded_by_a_variable(tmp_path: Path) -> None:
    place = tmp_path / "all.db"
    root = ROOT
    made = subprocess.run(
        [sys.executable, "-c", APP], env={**os.environ, "STATESET_RECORD": str(place)}, cwd=root, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with TraceStore(place, create=False) as store:
        traces = list(store.traces())
    assert [(t.status, [c.node for c in t.model_calls]) for t in traces] == [
        ("completed", ["only"])
    ] * 3
