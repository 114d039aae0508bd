"""Evidence: what the agent of a trace could know, from its tools and from the customer."""

import json
from typing import Any

from stateset_agents.grounding import specifics, states
from stateset_agents.trace import Trace, words


def _plain_numbers(value: Any) -> Any:
    """Amounts as people write them: 45.5 is 45.50."""
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return f"{value:.2f} {value}" if isinstance(value, float) else value


def from_tools(trace: Trace) -> set[str]:
    """Amounts, dates and ids that a tool reported."""
    done = (call for call in trace.tool_calls if call.status == "done")
    return set().union(
        *(
            specifics(json.dumps(_plain_numbers(call.result), ensure_ascii=False, default=str))
            for call in done
        )
    )


def states_from_tools(trace: Trace) -> set[str]:
    """States that tools reported, such as `delivered`; an empty list is `nothing`."""
    known: set[str] = set()
    for call in trace.tool_calls:
        if call.status == "done":
            known |= _states(call.result)
    return known


def from_customer(trace: Trace) -> set[str]:
    """Amounts, dates and ids that the customer wrote."""
    return set().union(*(specifics(text) for text in _written(trace)))


def states_from_customer(trace: Trace) -> set[str]:
    return set().union(*(states(text) for text in _written(trace)))


MANY = 3
"""More invented amounts, dates and ids than this are an attempt to state everything."""


def guesses(trace: Trace) -> bool:
    """Whether the agent invents so many specifics that one of them had to be right."""
    return len(specifics(trace.agent_text) - from_tools(trace) - from_customer(trace)) > MANY


def names_from_tools(trace: Trace) -> set[str]:
    """Names of things in tool results: texts of two words or more, without ids and numbers, in lower case."""
    known: set[str] = set()
    for call in trace.tool_calls:
        if call.status == "done":
            known |= _names(call.result)
    return known


def _names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(_names, value.values()))
    if isinstance(value, list):
        return set().union(*map(_names, value))
    words = [w for w in str(value).lower().split() if w.isalpha()] if isinstance(value, str) else []
    return {" ".join(words)} if len(words) > 1 else set()


def looked_up(trace: Trace) -> set[str]:
    """Amounts, dates and ids in calls that a tool answered."""
    done = (call for call in trace.tool_calls if call.status == "done")
    return set().union(
        *(
            specifics(json.dumps(_plain_numbers(call.arguments), ensure_ascii=False, default=str))
            for call in done
        )
    )


def _written(trace: Trace) -> list[str]:
    return [words(m) for m in trace.messages if m.get("role") == "user"]


def _states(value: Any) -> set[str]:
    if isinstance(value, str):
        return states(value)
    if isinstance(value, list):
        return set().union(*map(_states, value)) if value else {"nothing"}
    if not isinstance(value, dict):
        return set()
    known: set[str] = set()
    for key, item in value.items():
        if item is False:
            known |= states(f"not {key}")  # "valid": false is `invalid`
        elif item is True:
            known |= states(key)
        else:
            known |= _states(item)
    return known
