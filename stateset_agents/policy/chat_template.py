"""Chat templates: the seed policy's, what a model's own one leaves out, and ours in front of one that leaves something out.

The default is Hermes-style: tools as compact signatures, calls as `<tool_call>{...}</tool_call>`. It is also used for base models
without a template.
"""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

Hides = frozenset[str]
"""What a template does not show to the model: `tools`, `tool calls`, `tool answers`, `system text`."""
Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], Any]
"""Makes a prompt of messages and tools; raises if it cannot."""

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


def in_words(template: str, *, system: bool) -> str:
    """A chat template that shows tools, calls and answers in words, before a template that does not; `system`: whether that one has
    a place for system text."""
    before = resources.files("stateset_agents.policy").joinpath("tools_in_words.jinja").read_text()
    known = "{%- set stateset_system_is_known = " + ("true" if system else "false") + " -%}\n"
    return known + before + template


def complete_template(template: str | None, render: Callable[[str], Render]) -> str:
    """The template that shows everything: the model's own if it does, ours if it has none, or ours before its own. `render` makes
    prompts with a template. Raises ValueError if even that leaves something out."""
    if not template:
        return default_chat_template()
    hidden = hidden_by(render(template))
    if not hidden:
        return template
    whole = in_words(template, system="system text" not in hidden)
    missing = hidden_by(render(whole))
    if missing:
        raise ValueError(", ".join(sorted(missing)))
    return whole


def probes() -> Mapping[str, tuple[dict[str, Any], dict[str, Any]]]:
    """For each thing that a template has to show, two requests that differ in nothing else."""

    def call(order: str) -> dict[str, Any]:
        function = {"name": "look_up", "arguments": f'{{"id": "{order}"}}'}
        made = {"id": "call12345", "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [made]}

    def answered(order: str, answer: str) -> dict[str, Any]:
        answer_message = {
            "role": "tool",
            "tool_call_id": "call12345",
            "name": "look_up",
            "content": answer,
        }
        return {"messages": [_USER, call(order), answer_message], "tools": [PROBE_TOOL]}

    def instructed(text: str) -> dict[str, Any]:
        return {"messages": [{"role": "system", "content": text}, _USER]}

    return {
        "tools": ({"messages": [_USER]}, {"messages": [_USER], "tools": [PROBE_TOOL]}),
        "tool calls": (answered("W1", "shipped"), answered("W2", "shipped")),
        "tool answers": (answered("W1", "shipped"), answered("W1", "delivered")),
        "system text": (instructed("Be brief."), instructed("Be polite.")),
    }


def hidden_by(render: Render) -> Hides:
    """What a template hides: that which it cannot render, or renders as if it were not there."""
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
        if isinstance(message, dict) and message.get("role") in ("system", "developer"):
            shown.add("system text")
    return shown


def refusal(model: str, missing: set[str] | Hides) -> str:
    """Why a request is refused of which the model would not see something."""
    return (
        f"Expected a chat template that shows everything, found that {model!r}'s leaves out {', '.join(sorted(missing))}: the model would "
        "not know of them. Take a model that was trained with tools, or give it a chat template that shows them."
    )
