"""Prompts as token ids: a later call of a conversation begins with exactly the ids of the call before it.

A server that renders messages again may come to other ids than were sampled (`{"zip":"1"}` against `{"zip": "1"}`): the model
then reads what it never wrote, the prefix cache misses, and a row of training breaks in two. So the recorded ids go back as
they were:

call n      prompt P            sampled C  ends in the stop token s
rendered    turn s turn s turn s suffix     all messages by the chat template, up to what is to be answered
call n+1    P C suffix          suffix: what comes after as many s as P C has

A turn that was sampled may be rendered otherwise by the template; every other turn has to be what it was. Where one is not (a
system prompt that changed), where an answer is not what was sampled (an app that edits it), or was cut off, the call is a plain
one.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from stateset_agents.policy.completion import Completion

MAX_SEQUENCES = 4096
"""The most answers that later calls can extend."""

Content = tuple[object, ...]
"""The text and the tool calls of an assistant message, in one form."""


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """A turn that was sampled."""

    content: Content
    place: int
    """The number of assistant messages before it."""
    start: int
    """The number of the turn's ids before the first sampled one."""


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """An answer with the ids that led to it, and which turns in them were sampled."""

    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    turns: Mapping[int, SampledTurn] = field(default_factory=dict)
    """Sampled turns by number, including this answer."""


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call before its answer."""

    assistants: int
    """Assistant messages in it."""
    max_tokens: int | None
    """The most tokens of its answer."""
    extends: SampledSequence | None = None
    """The sequence that its prompt extends as ids."""


_sequences: OrderedDict[str, SampledSequence] = OrderedDict()


def pending_call(payload: dict[str, Any], extends: SampledSequence | None) -> PendingCall:
    """The data of a call for `remember`."""
    assistants = sum(message.get("role") == "assistant" for message in payload["messages"])
    max_tokens = payload.get("max_completion_tokens") or payload.get("max_tokens")
    return PendingCall(assistants, max_tokens, extends)


def remember(
    completion: Completion, message: dict[str, Any], stop_reason: object, call: PendingCall
) -> None:
    """Keep an answer's ids for the next call of its conversation. An answer that was cut off or ended by a stop word is not
    kept, since its last token does not end the turn."""
    prompt, sampled = completion.prompt_ids, completion.sampled_ids
    ended = completion.finish_reason in ("stop", "tool_calls") and stop_reason is None
    if not (prompt and sampled and ended) or (call.max_tokens and len(sampled) >= call.max_tokens):
        return
    turns = _turns(list(prompt), sampled[-1])
    start = len(prompt) - sum(map(len, turns))
    earlier = call.extends.turns if call.extends is not None else {}
    latest = SampledTurn(content_of(message), call.assistants, start)
    _sequences[completion.response_id] = SampledSequence(
        prompt, sampled, {**earlier, len(turns): latest}
    )
    while len(_sequences) > MAX_SEQUENCES:
        _sequences.popitem(last=False)


def extensible(messages: Sequence[BaseMessage], payload: dict[str, Any]) -> SampledSequence | None:
    """The sequence that ends with the last assistant message; None if an assistant message was changed or is not ours."""
    last = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    sequence = _sequences.get(str(last.response_metadata.get("id"))) if last is not None else None
    if sequence is None or messages[-1] is last:
        return None
    sent = [content_of(m) for m in payload["messages"] if m.get("role") == "assistant"]
    if len(sent) != 1 + max(turn.place for turn in sequence.turns.values()):
        return None
    unchanged = all(sent[turn.place] == turn.content for turn in sequence.turns.values())
    return sequence if unchanged else None


def extend(sequence: SampledSequence, rendered: Sequence[int]) -> list[int] | None:
    """The next prompt: `sequence` and the rest of `rendered`, the ids of all messages; None if they do not fit."""
    known, ids = [*sequence.prompt, *sequence.sampled], list(rendered)
    before, after = _turns(known, known[-1]), _turns(ids, known[-1])
    if len(after) < len(before):
        return None
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        sampled = sequence.turns.get(number)
        start = sampled.start if sampled is not None else max(len(old), len(new))
        if old[:start] != new[:start]:
            return None
    end = sum(len(turn) for turn in after[: len(before)])
    return [*known, *ids[end:]]


def _turns(ids: list[int], stop: int) -> list[list[int]]:
    """Whole turns, each with the token that ends it."""
    turns, start = [], 0
    for place, token in enumerate(ids):
        if token == stop:
            turns.append(ids[start : place + 1])
            start = place + 1
    return turns


def content_of(message: dict[str, Any]) -> Content:
    """The text and calls of an assistant message."""
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
