"""Lineage: proves that the tokens an adapter learned from were sampled by the recorded version.

response id -> hash of ids and log-probabilities -> trace and call -> policy version -> adapter
"""

from collections.abc import Iterator, Sequence

from stateset_agents.trace import ModelCall
from stateset_agents.traces.codec import digest
from stateset_agents.traces.store import TraceStore
from stateset_agents.traces.tables import Row
from stateset_agents.traces.writer import Written

_LEARN = (
    "INSERT INTO trained VALUES(?, ?, ?, ?, ?, ?, COALESCE((SELECT customer FROM runs WHERE id = ?), '')) "
    "ON CONFLICT DO NOTHING"
)
_DESCEND = "INSERT INTO adapters VALUES(?, ?) ON CONFLICT DO NOTHING"
Kept = dict[int, tuple[str, str, str]]
"""Digest, response id and version of a run's calls, by number."""

_CERTIFICATES = (
    "SELECT trained.adapter, trained.run, trained.number, trained.response_id, trained.digest, trained.version, "
    "calls.response_id, calls.digest, calls.version, runs.id FROM trained "
    "LEFT JOIN runs ON runs.id = trained.run "
    "LEFT JOIN calls ON calls.run = trained.run AND calls.number = trained.number "
    "ORDER BY trained.adapter, trained.run, trained.number"
)


def certify(
    store: TraceStore, adapter: str, rows: Sequence[tuple[str, int, ModelCall]], *, parent: str = ""
) -> Written:
    """Record that an adapter, trained from `parent`, learned from calls, given as (trace, number, call)."""
    learned = [
        (_LEARN, (run, number, adapter, call.response_id, digest(call), call.version, run))
        for run, number, call in rows
    ]
    return store.put([(_DESCEND, (adapter, parent)), *learned])


def problems(store: TraceStore) -> Iterator[str]:
    """The problems of a store and of its adapters' certificates, one by one. An erased run is not a problem: its certificate
    stays."""
    for row in store.rows():
        kept = {
            int(number): (str(hashed), str(response), str(version))
            for number, hashed, response, version in store.read(
                "SELECT number, digest, response_id, version FROM calls WHERE run = ?", row[0]
            )
        }
        yield from _of_run(store, row, kept)
    for adapter, run, number, *columns, there in store.read(_CERTIFICATES):
        learned, stored = tuple(columns[:3]), tuple(columns[3:])
        if there is not None and learned != stored:
            yield (
                f"{adapter} learned from call {number} of trace {run[:12]}: expected response, tokens and version "
                f"{learned}, found {stored}"
            )


def _of_run(store: TraceStore, row: Row, kept: Kept) -> Iterator[str]:
    run = str(row[0])[:12]
    trace, numbered, unread = store.inspected(row)
    for problem in unread:
        yield f"trace {run}: {problem.splitlines()[0]}"
    for number, call in numbered.items():
        if kept.get(number) != (digest(call), call.response_id, call.version):
            yield f"trace {run}, call {number} ({call.response_id}): its tokens are not those that were recorded"
    ids = [call.response_id for call in trace.calls if call.exactness == "exact"]
    for twice in sorted({response for response in ids if ids.count(response) > 1}):
        yield f"trace {run}: the response {twice} is there twice"
