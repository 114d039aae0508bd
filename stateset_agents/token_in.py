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
class Spoken:
    """An answer, the ids that led to it and that it is, and which turns in them were sampled."""

    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    finished: bool
    """Whether the last sampled token is the one that ends a turn."""
    own: Mapping[int, Said] = field(default_factory=dict)
    """What was said in turns that were sampled and went back as they were, this answer included, by their number."""


_spoken: OrderedDict[str, Spoken] = OrderedDict()


def remember(
    response_id: str, message: dict[str, Any], prompt: Sequence[int], sampled: Sequence[int], finish: str,
    after: Spoken | None = None,
) -> None:  # fmt: skip
    """Keep an answer's ids for the call that comes next in its conversation. `after` is the answer that its prompt went on from."""
    if not (prompt and sampled):
        return
    finished = finish in ("stop", "tool_calls")
    earlier = after.own if after is not None else {}
    number = list(prompt).count(sampled[-1])
    _spoken[response_id] = Spoken(
        tuple(prompt), tuple(sampled), finished, {**earlier, number: said_in(message)}
    )
    while len(_spoken) > KEPT:
        _spoken.popitem(last=False)


def before(messages: Sequence[BaseMessage], payload: dict[str, Any]) -> Spoken | None:
    """The answer that the last assistant message is, where it and those before it are ours and unchanged."""
    last = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    spoken = _spoken.get(str(last.response_metadata.get("id"))) if last is not None else None
    if spoken is None or messages[-1] is last:
        return None
    sent = [said_in(m) for m in payload["messages"] if m.get("role") == "assistant"]
    wanted = [said for _, said in sorted(spoken.own.items(), key=lambda turn: turn[0])]
    if not sent or sent[-1] != wanted[-1]:
        return None
    remaining = iter(sent)
    return spoken if all(said in remaining for said in wanted) else None


def extended(spoken: Spoken, rendered: Sequence[int]) -> list[int] | None:
    """The next prompt: `spoken` and what `rendered`, the ids of all messages, has after it; None where they do not fit."""
    if not spoken.finished:
        return None
    known = [*spoken.prompt, *spoken.sampled]
    stop, turns = known[-1], list(rendered)
    was, now = _turns(known, stop), _turns(turns, stop)
    if len(now) < len(was):
        return None
    for number, (old, new) in enumerate(zip(was, now, strict=False)):
        if number not in spoken.own and old != new:
            return None
    end = sum(len(turn) for turn in now[: len(was)])
    return [*known, *turns[end:]]


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
