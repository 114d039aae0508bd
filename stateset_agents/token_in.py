"""Prompts as token ids: a later call of a conversation begins with the very ids of the call before it, and adds to them.

A server that renders messages again may come to other ids than were sampled (`{"zip":"1"}` against `{"zip": "1"}`): the model then reads
what it never wrote, the prefix cache misses, and a row of training breaks in two. So the recorded ids go back as they were:

call n      prompt P            sampled C  ends in the stop token s
rendered    P ... s suffix      the server's own rendering of all messages, up to what is to be answered
call n+1    P C suffix          suffix: what comes after the first s that follows P

Where the rendering does not begin with P (a system prompt that changed, a template that drops reasoning), or the last answer is not what was
sampled (an app that edits it), the call is a plain one.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

KEPT = 4096
"""Answers that later calls may go on from."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One answer, and the ids that led to it and that it is."""

    said: tuple[object, ...]
    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    finished: bool
    """Whether the last sampled token is the one that ends a turn."""


_spoken: OrderedDict[str, Spoken] = OrderedDict()


def remember(
    response_id: str, message: dict[str, Any], prompt: Sequence[int], sampled: Sequence[int], finish: str
) -> None:  # fmt: skip
    """Keep an answer's ids for the call that comes next in its conversation."""
    if not (prompt and sampled):
        return
    finished = finish in ("stop", "tool_calls")
    _spoken[response_id] = Spoken(_said(message), tuple(prompt), tuple(sampled), finished)
    while len(_spoken) > KEPT:
        _spoken.popitem(last=False)


def before(messages: Sequence[BaseMessage], payload: dict[str, Any]) -> Spoken | None:
    """The answer that the last assistant message is, where it is one of ours and unchanged."""
    last = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    spoken = _spoken.get(str(last.response_metadata.get("id"))) if last is not None else None
    if spoken is None or not isinstance(messages[-1], BaseMessage) or messages[-1] is last:
        return None
    sent = [m for m in payload["messages"] if m.get("role") == "assistant"]
    return spoken if sent and _said(sent[-1]) == spoken.said else None


def extended(spoken: Spoken, rendered: Sequence[int]) -> list[int] | None:
    """The next prompt: `spoken` and what `rendered`, the ids of all messages, has after it; None where they do not fit."""
    size = len(spoken.prompt)
    if tuple(rendered[:size]) != spoken.prompt:
        return None
    stop = spoken.sampled[-1] if spoken.finished else None
    after = list(rendered[size:])
    if stop is None or stop not in after:
        return None
    return [*spoken.prompt, *spoken.sampled, *after[after.index(stop) + 1 :]]


def _said(message: dict[str, Any]) -> tuple[object, ...]:
    """What an assistant message says, without how it is written down."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        with contextlib.suppress(TypeError, ValueError):
            arguments = json.dumps(json.loads(arguments or "{}"), sort_keys=True)
        calls.append((call["function"]["name"], arguments))
    return (content, *calls)
