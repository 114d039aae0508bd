"""Chat templates: the seed policy's, and what a model's own one leaves out.

The default is Hermes-style: tools as compact signatures, calls as `<tool_call>{...}</tool_call>`. It is also used for base models
without a template.
"""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

Hides = frozenset[str]
"""What a template does not show to the model: `tools`, `tool calls`, `tool answers`."""

PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    },
}
_USER = {"role": "user", "content": "Where is my order?"}


def default_chat_template() -> str:
    return (
        resources.files("stateset_agents")
        .joinpath("seed_policy", "chat_template.jinja")
        .read_text()
    )


def probes() -> Mapping[str, tuple[dict[str, Any], dict[str, Any]]]:
    """For each thing that a template has to show, two requests that differ in nothing else."""

    def call(order: str) -> dict[str, Any]:
        function = {"name": "look_up", "arguments": f'{{"id": "{order}"}}'}
        made = {"id": "call_1", "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [made]}

    def answered(order: str, answer: str) -> dict[str, Any]:
        answer_message = {
            "role": "tool",
            "tool_call_id": "call_1",
            "name": "look_up",
            "content": answer,
        }
        return {"messages": [_USER, call(order), answer_message], "tools": [PROBE_TOOL]}

    return {
        "tools": ({"messages": [_USER]}, {"messages": [_USER], "tools": [PROBE_TOOL]}),
        "tool calls": (answered("W1", "shipped"), answered("W2", "shipped")),
        "tool answers": (answered("W1", "shipped"), answered("W1", "delivered")),
    }


def hidden_by(render: Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], Any]) -> Hides:
    """What a template hides: that which it cannot render, or renders as if it were not there. `render` makes a prompt of messages
    and tools, and raises if it cannot."""
    hidden = set()
    for name, requests in probes().items():
        try:
            prompts = [render(r["messages"], r.get("tools")) for r in requests]
        except Exception:  # noqa: BLE001 (a template raises whatever its author likes)
            hidden.add(name)
            continue
        if prompts[0] == prompts[1]:
            hidden.add(name)
    return frozenset(hidden)


def needed(messages: list[Any], tools: Any) -> set[str]:
    """What a request needs its template to show."""
    shown = {"tools"} if tools else set()
    for message in messages:
        if isinstance(message, dict) and message.get("tool_calls"):
            shown.add("tool calls")
        if isinstance(message, dict) and message.get("role") == "tool":
            shown.add("tool answers")
    return shown


def refusal(model: str, missing: set[str] | Hides) -> str:
    """Why a request is refused whose tools the model would not see."""
    return (
        f"Expected a chat template that shows tools, found that {model!r}'s leaves out {', '.join(sorted(missing))}: the model would "
        "not know of them. Take a model that was trained with tools, or give it a chat template that shows them."
    )
