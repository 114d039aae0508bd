"""The edges of an agent's graph: which node comes next."""

from typing import Any

from langchain_core.messages import (
    AIMessage,
    ToolMessage,
)

from stateset_agents.nodes.state import (
    AgentState,
)

HAND_OFF = "escalate_to_human"
"""The tool that passes a conversation to a person."""


def after_identity(state: AgentState) -> str:
    return "handoff" if state.get("handed_off") else "policy"


def after_policy(state: AgentState) -> str:
    if state.get("handed_off"):
        return "handoff"
    last = state["messages"][-1]
    return "tools" if isinstance(last, AIMessage) and last.tool_calls else "__end__"


def after_tools(state: AgentState) -> str:
    if state.get("proposal"):
        return "confirm"
    return "handoff" if hands_off(state["tool_calls"][-1]) else "policy"


def after_confirm(state: AgentState) -> str:
    """Calls after the confirmed one in the same message still have to run."""
    last = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
    answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
    return "policy" if all(call["id"] in answered for call in last.tool_calls) else "tools"


def hands_off(attempt: dict[str, Any]) -> bool:
    return bool(attempt["name"] == HAND_OFF and attempt["status"] == "done")
