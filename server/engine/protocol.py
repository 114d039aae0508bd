"""From OpenAI's chat protocol to token ids and back: render the prompt, parse the answer's tool calls."""

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from stateset_agents.errors import BadInput

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None,
) -> list[int]:
    """Messages and tools as prompt ids, by the model's own chat template."""
    readable = [_readable(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            readable,
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=True,
        )
    except (ValueError, TemplateError) as error:
        raise BadInput(f"The chat template refused the messages: {error}") from None
    return list(tokenizer.encode(str(text), add_special_tokens=False))


def _readable(message: dict[str, Any]) -> dict[str, Any]:
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    readable = {**message, "role": role, "content": content}
    if calls := message.get("tool_calls"):
        readable["tool_calls"] = [_as_object(call) for call in calls]
    return readable


def _as_object(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as templates expect them: an object, not JSON text."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (TypeError, ValueError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _storable(text: str) -> int:
    """A number that fits into a checkpoint: integers of at most 64 bits, no NaN or Infinity."""
    value = int(text)
    if value.bit_length() > 63:
        raise ValueError(text)
    return value


def read_answer(text: str) -> tuple[str | None, list[dict[str, Any]]]:
    """The text before the first tool call, and the calls. Text that is not a valid call stays text.

    >>> read_answer('Wait.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>')[0]
    'Wait.'
    """
    calls = []
    for block in _CALL.findall(text):
        try:
            call = json.loads(block, parse_int=_storable, parse_constant=_storable)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, KeyError, TypeError):
            return text, []
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return text, []
        calls.append(
            {
                "id": f"chatcmpl-tool-{uuid.uuid4().hex}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
        )
    if not calls:
        return text, []
    return text[: text.index("<tool_call>")] or None, calls


def visible(text: str) -> str:
    """The part of an unfinished answer that cannot be the beginning of a tool call."""
    mark = "<tool_call>"
    if mark in text:
        return text[: text.index(mark)]
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return text[:-length]
    return text
