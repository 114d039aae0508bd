"""`record(graph, store)`: the same graph, whose runs are in the store."""

from typing import TypeVar

from stateset_agents.errors import BadInput
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.redaction import Redacted, Redactor
from stateset_agents.traces.run_state import last_nodes
from stateset_agents.traces.sink import TraceSink

Graph = TypeVar("Graph")


def record(graph: Graph, sink: TraceSink, *, redact: Redactor | bool = True) -> Graph:
    """Returns the same graph, whose runs are recorded into a TraceStore. Raises BadInput for anything but a LangGraph graph.
    The customer's id, for erasing on request, is read from `customer` or `user_id` in the metadata of a run's config, or from a
    shop agent's session. Personal data is redacted unless `redact` is False."""
    configured = getattr(graph, "with_config", None)
    if configured is None:
        raise BadInput(f"Expected a compiled LangGraph graph, found {type(graph).__name__}.")
    if redact is not False:
        sink = Redacted(sink, Redactor() if redact is True else redact)
    made: Graph = configured(callbacks=[Recorder(sink, last_nodes=last_nodes(graph))])
    return made
