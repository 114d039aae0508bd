"""Prompts as token ids: a later call of a conversation begins with the very ids of the call before it, and adds to them.

A server that renders messages again may come to other ids than were sampled (`{"zip":"1"}` against `{"zip": "1"}`): the model then reads
what it never wrote, the prefix cache misses, and a row of training breaks in two. So the recorded ids go back as they were:

call n      prompt P            sampled C  ends in the stop token s
rendered    turn s turn s turn s suffix     all messages by the chat template, up to what is to be answered
call n+1    P C suffix          suffix: what comes after as many s as P C has

A turn that was sampled may be written otherwise by the template; every other turn has to be what it was. Where one is not (a system prompt that
changed), where an answer is not what was sampled (an app that edits it), or was cut off, the call is a plain one.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

KEPT = 4096
"""Answers that later calls may go on from."""

Said = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Own:
    """A turn that was sampled."""

    said: Said
    place: int
    """How many assistant messages stood before it."""
    start: int
    """How many of the turn's ids stood there before the first that was sampled."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer, the ids that led to it and that it is, and which turns in them were sampled."""

    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    own: Mapping[int, Own] = field(default_factory=dict)
    """The turns that were sampled and went back as they were, this answer included, by their number."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a call before it is answered."""

    assistants: int
    """Assistant messages in it."""
    most: int | None
    """Tokens that its answer may have."""
    after: Spoken | None = None
    """The answer that its prompt went on from as ids."""


_spoken: OrderedDict[str, Spoken] = OrderedDict()


def asked(payload: dict[str, Any], after: Spoken | None) -> Asked:
    """What `remember` needs of a call."""
    count = sum(message.get("role") == "assistant" for message in payload["messages"])
    most = payload.get("max_completion_tokens") or payload.get("max_tokens")
    return Asked(count, most, after)


def remember(
    response_id: str, message: dict[str, Any], prompt: Sequence[int], sampled: Sequence[int], finish: str,
    stopped_by: object, call: Asked,
) -> None:  # fmt: skip
    """Keep an answer's ids for the call that comes next in its conversation; one that was cut off, or ended by a word, is not gone on
    from, since its last token ends no turn."""
    whole = finish in ("stop", "tool_calls") and stopped_by is None
    if not (prompt and sampled and whole) or (call.most and len(sampled) >= call.most):
        return
    turns = _turns(list(prompt), sampled[-1])
    start = len(prompt) - sum(map(len, turns))
    earlier = call.after.own if call.after is not None else {}
    mine = Own(said_in(message), call.assistants, start)
    _spoken[response_id] = Spoken(tuple(prompt), tuple(sampled), {**earlier, len(turns): mine})
    while len(_spoken) > KEPT:
        _spoken.popitem(last=False)


def before(messages: Sequence[BaseMessage], payload: dict[str, Any]) -> Spoken | None:
    """The answer that the last assistant message is, where it and those before it are ours, unchanged and in their places."""
    last = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    spoken = _spoken.get(str(last.response_metadata.get("id"))) if last is not None else None
    if spoken is None or messages[-1] is last:
        return None
    sent = [said_in(m) for m in payload["messages"] if m.get("role") == "assistant"]
    if len(sent) != 1 + max(own.place for own in spoken.own.values()):
        return None
    return spoken if all(sent[own.place] == own.said for own in spoken.own.values()) else None


def extended(spoken: Spoken, rendered: Sequence[int]) -> list[int] | None:
    """The next prompt: `spoken` and what `rendered`, the ids of all messages, has after it; None where they do not fit."""
    known, ids = [*spoken.prompt, *spoken.sampled], list(rendered)
    was, now = _turns(known, known[-1]), _turns(ids, known[-1])
    if len(now) < len(was):
        return None
    for number, (old, new) in enumerate(zip(was, now, strict=False)):
        start = spoken.own[number].start if number in spoken.own else max(len(old), len(new))
        if old[:start] != new[:start]:
            return None
    end = sum(len(turn) for turn in now[: len(was)])
    return [*known, *ids[end:]]


def _turns(ids: list[int], stop: int) -> list[list[int]]:
    """Whole turns, each with the token that ends it."""
    turns, start = [], 0
    for place, token in enumerate(ids):
        if token == stop:
            turns.append(ids[start : place + 1])
            start = place + 1
    return turns


def said_in(message: dict[str, Any]) -> Said:
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
