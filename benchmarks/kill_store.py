"""A process that records under load is killed; what it had acknowledged has to be there. Used by tests and `make prove`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from stateset_agents.traces.codec import digest
from stateset_agents.traces.lineage import problems
from stateset_agents.traces.store import TraceStore

WRITES = """
import itertools, random, sys
from functools import partial
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces.codec import digest
from stateset_agents.traces.store import TraceStore

store, rng = TraceStore(sys.argv[1]), random.Random(0)
for run in itertools.count():
    trace = Trace(id=f"run{run}")
    store.begin(trace)
    prompt, pending = [], []
    for number in range(20):
        prompt += [rng.randrange(1000) for _ in range(100)]
        sampled = tuple(rng.randrange(1000) for _ in range(30))
        call = ModelCall(response_id=f"r{run}-{number}", node="policy", prompt_ids=tuple(prompt), sampled_ids=sampled,
                         logprobs=(-1.0,) * 30)
        prompt += sampled
        pending.append((number, call, store.add_call(trace.id, number, partial(ModelCall.model_copy, call))))
    ended = store.end(trace.id, partial(Trace.model_copy, trace))
    for number, call, done in pending:
        done.result()
        print(trace.id, number, digest(call), flush=True)
    ended.result()
    print(trace.id, "end", flush=True)
"""


def kill_after(folder: Path, acknowledged: int) -> str:
    """Kill the writer once so many calls are acknowledged; what was lost or is wrong, '' for nothing."""
    place = folder / "traces.db"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.split())
        if len(lines) >= acknowledged:
            os.kill(process.pid, signal.SIGKILL)
            break
    rest, _ = process.communicate()
    lines += [line.split() for line in rest.splitlines() if len(line.split()) in (2, 3)]
    with TraceStore(place, create=False) as store:
        traces = {trace.id: trace for trace in store.traces()}
        wrong = list(problems(store))
    for run, number, *hashed in lines:
        if number == "end":
            if traces[run].status != "completed":
                return f"{run} was acknowledged as ended, and is {traces[run].status}"
        elif digest(traces[run].model_calls[int(number)]) != hashed[0]:
            return f"call {number} of {run} is not as it was acknowledged"
    ended = {run for run, number, *_ in lines if number == "end"}
    open_ = [t for t in traces.values() if t.status == "interrupted" and t.id in ended]
    return "; ".join([*wrong, *(t.id for t in open_)])
