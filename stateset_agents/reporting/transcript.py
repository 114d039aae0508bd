"""What happened in a run as lines to read, whatever its graph keeps: messages, or calls and tools between an input and an output."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from stateset_agents.trace import ToolCall, Trace, words

Kind = Literal["customer", "agent", "calls", "tool", "input", "output"]
LONG = 4000


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was said or done. `speaker`: who it is shown as."""

    kind: Kind
    text: str
    speaker: str


def lines_of(trace: Trace) -> list[Line]:
    """The lines of a trace, in order, down to an error that ended it."""
    lines = _conversation(trace) if trace.messages else _calls(trace)
    if trace.error:
        lines.append(Line("output", trace.error, trace.status))
    return lines


def _conversation(trace: Trace) -> list[Line]:
    who: dict[str, Kind] = {"user": "customer", "assistant": "agent", "tool": "tool"}
    lines = []
    for message in trace.messages:
        kind = who.get(message["role"])
        if kind is None:
            continue
        text = words(message)
        if text:
            lines.append(Line(kind, text, kind))
        lines += _requests(message)
    return lines


def _calls(trace: Trace) -> list[Line]:
    """A run whose state has no messages."""
    given = trace.input if trace.input is not None else (trace.scenario and trace.scenario.input)
    lines = [Line("input", _json(given), "input")] if given is not None else []
    answers = {tool.id: tool for tool in trace.tool_calls if tool.id}
    shown = set()
    for call in trace.calls:
        text = words(call.answer) if call.answer else ""
        if text:
            lines.append(Line("agent", text[:LONG], call.node or "model"))
        lines += _requests(call.answer or {})
        for request in (call.answer or {}).get("tool_calls") or []:
            tool = answers.get(request.get("id"))
            if tool is not None:
                lines.append(_answered(tool))
                shown.add(tool.id)
    for tool in trace.tool_calls:
        if tool.id not in shown:
            lines.append(Line("calls", f"{tool.name} {_json(tool.arguments)}", "calls"))
            lines.append(_answered(tool))
    if trace.output is not None:
        lines.append(Line("output", _json(trace.output), "output"))
    return lines


def _requests(message: dict[str, Any]) -> list[Line]:
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return [Line("calls", f"{f['name']} {f['arguments']}", "calls") for f in functions]


def _answered(tool: ToolCall) -> Line:
    answer = next(
        (text for text in (tool.content, tool.result) if isinstance(text, str)), _json(tool.result)
    )
    return Line(
        "tool", answer[:LONG] if tool.status == "done" else f"{tool.status}: {answer}", "tool"
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:LONG]
