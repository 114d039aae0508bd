"""What the agent of a trace could know: from its tools, and from the customer."""

import json

from stateset_agents.statements import specifics
from stateset_agents.trace import Trace


def from_tools(trace: Trace) -> set[str]:
    """Specifics that a tool reported."""
    done = (call for call in trace.tool_calls if call.status == "done")
    return set().union(*(specifics(json.dumps(call.result)) for call in done))


def from_customer(trace: Trace) -> set[str]:
    """Specifics that the customer wrote."""
    written = (str(m.get("content") or "") for m in trace.messages if m["role"] == "user")
    return set().union(*(specifics(text) for text in written))
