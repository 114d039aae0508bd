"""What a proxied call said, read from the bytes that passed, after they passed.

The client never waits for it, and whatever a server sends is read as far as it can be: what cannot is counted in `lost`.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stateset_agents.plain import plain
from stateset_agents.policy.completion import (
    Completion,
    completion_of,
    join_completions,
    join_message,
)

Answers = list[tuple[Completion, dict[str, Any]]]
"""The tokens and the message of each choice."""


@dataclass(slots=True)
class Reading:
    """The record of one answer."""

    answers: Answers = field(default_factory=list)
    error: str | None = None
    """The server's error, or why the answer is not whole."""
    lost: int = 0
    """Pieces that could not be read."""


def read(kind: str, data: bytes, *, status: int, streamed: bool, ended: str | None) -> Reading:
    """An answer of `kind` (`chat/completions`, `completions` or `responses`). `ended`: why the bytes end early, or None."""
    if status >= 400:
        return Reading(error=f"{status}: {data[:300].decode(errors='replace')}")
    events, lost, done = list[dict[str, Any]](), 0, not streamed
    if streamed:
        for text in events_of(data):
            if text.strip() == "[DONE]":
                done = True
                continue
            event = _object(text)
            lost += event is None
            events += [event] if event is not None else []
    else:
        whole = _object(data.decode(errors="replace"))
        lost = int(whole is None)
        events = [whole] if whole is not None else []
    error = next((_message(e["error"]) for e in events if e.get("error")), None)
    readers = {"chat/completions": _chat, "completions": _text, "responses": _responses}
    try:
        answers, whole_answer = readers[kind](events, streamed)
    except Exception as problem:  # noqa: BLE001 (a form that nobody has sent yet)
        return Reading(error=f"cannot be read: {type(problem).__name__}: {problem}", lost=lost + 1)
    if error is None and not answers:
        error = f"no answer: {data[:300].decode(errors='replace')}"
    if error is None and not (done or whole_answer):
        error = ended or "the stream ended without a finish reason"
    return Reading(answers=answers, error=error, lost=lost)


def events_of(data: bytes) -> Iterator[str]:
    """The data of server-sent events: `data:` with or without a space, over several lines, whatever ends a line."""
    parts: list[str] = []
    for line in data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith("data:"):
            parts.append(line[5:].removeprefix(" "))
        elif not line and parts:
            yield "\n".join(parts)
            parts = []
    if parts:
        yield "\n".join(parts)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(error: Any) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def _chat(events: list[dict[str, Any]], streamed: bool) -> tuple[Answers, bool]:
    """The choices of a chat, and whether each has an end."""
    if not streamed:
        body = events[0] if events else {}
        choices = [c for c in body.get("choices") or [] if isinstance(c, dict)]
        whole = {"id": uuid.uuid4().hex, **body, "choices": choices}
        return [(completion_of(whole, n), plain(c.get("message") or {})) for n, c in enumerate(choices)], True  # fmt: skip
    chunks: dict[int, list[dict[str, Any]]] = {}
    ended = set()
    response = next((e["id"] for e in events if e.get("id")), uuid.uuid4().hex)
    for event in events:
        for choice in event.get("choices") or []:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index") if isinstance(choice.get("index"), int) else 0
            part = {"id": response, **event, "choices": [{**choice, "index": 0}]}
            chunks.setdefault(int(index or 0), []).append(part)
            if choice.get("finish_reason"):
                ended.add(int(index or 0))
    answers = [
        (join_completions(parts), join_message(parts)) for _, parts in sorted(chunks.items())
    ]
    return answers, bool(chunks) and ended == chunks.keys()


def _text(events: list[dict[str, Any]], streamed: bool) -> tuple[Answers, bool]:
    """The choices of a completion of text."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for event in events:
        for choice in event.get("choices") or []:
            index = int(choice.get("index") or 0)
            texts[index] = texts.get(index, "") + str(choice.get("text") or "")
            reasons[index] = choice.get("finish_reason") or reasons.get(index, "")
    answers = [
        (_plain_completion(events[0], reasons[n]), {"role": "assistant", "content": texts[n]})
        for n in sorted(texts)
    ]
    return answers, not streamed or (bool(texts) and all(reasons.values()))


def _responses(events: list[dict[str, Any]], streamed: bool) -> tuple[Answers, bool]:
    """The output of a response; of a stream, its last event has the whole."""
    ends = ("response.completed", "response.incomplete", "response.failed")
    last = next((e for e in reversed(events) if e.get("type") in ends), None)
    body = (last or {}).get("response") if streamed else (events[0] if events else None)
    if not isinstance(body, dict):
        pieces = [e.get("delta") for e in events if e.get("type") == "response.output_text.delta"]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        made = (_plain_completion({}, ""), {"role": "assistant", "content": text})
        return ([made] if text else []), False
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for item in body.get("output") or []:
        if item.get("type") == "message":
            parts = [part.get("text") or part.get("refusal") or "" for part in item.get("content") or []]  # fmt: skip
            message["content"] += "".join(parts)
        elif item.get("type") == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        else:  # reasoning, a built-in tool's use: kept as it came
            message.setdefault("extra", []).append(plain(item))
    return [(_plain_completion(body, str(body.get("status") or "")), message)], True


def _plain_completion(body: dict[str, Any], reason: str) -> Completion:
    return Completion(
        response_id=str(body.get("id") or uuid.uuid4().hex), version=str(body.get("model") or ""),
        prompt_ids=(), sampled_ids=(), logprobs=(), finish_reason=reason,
    )  # fmt: skip


def messages_of(kind: str, body: dict[str, Any]) -> list[Any]:
    """What a request asked, as chat messages."""
    if kind == "chat/completions":
        messages = body.get("messages")
        return messages if isinstance(messages, list) else []
    question = body.get("prompt") if kind == "completions" else body.get("input")
    first = (
        [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    )
    if isinstance(question, list) and question and all(isinstance(item, dict) for item in question):
        return first + [_item(item) for item in question]
    return [
        *first,
        {"role": "user", "content": question if isinstance(question, str) else plain(question)},
    ]


def _item(item: dict[str, Any]) -> dict[str, Any]:
    """An item of a response's input as a chat message."""
    if item.get("type") == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    content = item.get("content")
    if isinstance(content, list):
        kinds = {"input_text": "text", "output_text": "text"}
        content = [{**p, "type": kinds.get(str(p.get("type")), p.get("type"))} for p in content if isinstance(p, dict)]  # fmt: skip
    return {"role": item.get("role") or "user", "content": content}
