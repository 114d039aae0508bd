"""What the agent of a trace could know: from its tools, and from the customer."""

import json
from collections.abc import Iterable

from stateset_agents.statements import specifics
from stateset_agents.trace import Trace


def known(trace: Trace) -> set[str]:
    """What the agent could know: from tools' results and arguments, and from the customer."""
    texts: Iterable[str] = (
        *(json.dumps(call.result) for call in trace.tool_calls if call.status == "done"),
        *(str(m.get("content") or "") for m in trace.messages if m["role"] == "user"),
    )
    return set().union(*(specifics(text) for text in texts))


def from_tools(trace: Trace) -> set[str]:
    """Specifics that a tool reported."""
    done = (call for call in trace.tool_calls if call.status == "done")
    return set().union(*(specifics(json.dumps(call.result)) for call in done))
