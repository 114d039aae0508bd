"""Readers of tool calls: each form in which models write them.

Hermes and Mistral are read here; Llama 3, Qwen 3 and 3.5, GLM, gpt-oss, Gemma 4, LFM2.5, Nemotron 3 and DeepSeek by transformers'
`parse_response` with the forms that TRL keeps.
"""

import functools
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Read = tuple[str | None, list[dict[str, Any]], str | None]
"""Content, calls, and thoughts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One form of calls."""

    name: str
    read: Callable[[Any, str, Sequence[dict[str, Any]] | None, str], Read]
    """Of the tokenizer, the text with the special tokens that it needs, the tools, and the end of the prompt."""
    marks: tuple[str, ...]
    """Texts that a call is written with; special tokens among them are not removed before it is read."""
    opening: str | None = None
    """How every call begins, so that text before it may be streamed; None: nothing is certain before the end."""

    def needs(self, token: str) -> bool:
        """Whether a special token is a part of how calls are written."""
        return any(token in mark or re.escape(token) in mark for mark in self.marks)

    def visible(self, text: str) -> str:
        """The part of an unfinished answer that cannot be the beginning of a call."""
        if self.opening is None:
            return ""
        if self.opening in text:
            return text[: text.index(self.opening)]
        for length in range(min(len(self.opening) - 1, len(text)), 0, -1):
            if text.endswith(self.opening[:length]):
                return text[:-length]
        return text


def call_made(name: str, arguments: Any) -> dict[str, Any]:
    """A call as OpenAI's protocol has it, with an id of its own."""
    return {
        "id": f"chatcmpl-tool-{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }


def _storable(text: str) -> int:
    """A number that fits into a checkpoint: integers of at most 64 bits, no NaN or Infinity."""
    value = int(text)
    if value.bit_length() > 63:
        raise ValueError(text)
    return value


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_storable, parse_constant=_storable)


def _named(call: Any) -> dict[str, Any]:
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("Expected a name and an object.")
    return call_made(name, arguments)


_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_THOUGHTS = re.compile(r"^\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)


def read_hermes(text: str) -> tuple[str | None, list[dict[str, Any]]]:
    """The text before the first tool call, and the calls. Text that is not a valid call stays text.

    >>> read_hermes('Wait.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>')[0]
    'Wait.'
    """
    try:
        calls = [_named(_loads(block)) for block in _CALL.findall(text)]
    except (ValueError, KeyError, TypeError):
        return text, []
    if not calls:
        return text, []
    return text[: text.index("<tool_call>")] or None, calls


def _hermes(tokenizer: Any, text: str, tools: Any, prompt: str) -> Read:
    content, calls = read_hermes(text)
    thoughts = _THOUGHTS.match(content) if content and "</think>" in content else None
    if thoughts and content:
        return content[thoughts.end() :] or None, calls, thoughts[1].strip()
    return content, calls, None


_MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*(?=\{)")


def _mistral(tokenizer: Any, text: str, tools: Any, prompt: str) -> Read:
    """`[TOOL_CALLS] [{"name": …, "arguments": …}]`, or `[TOOL_CALLS]name[ARGS]{…}` for each."""
    mark, calls = "[TOOL_CALLS]", []
    if mark not in text:
        return text, [], None
    before, _, rest = text.partition(mark)
    try:
        if "[ARGS]" in rest:
            decoder = json.JSONDecoder(parse_int=_storable, parse_constant=_storable)
            for match in _MISTRAL.finditer(text):
                arguments, _ = decoder.raw_decode(text, match.end())
                calls.append(_named({"name": match["name"], "arguments": arguments}))
        else:
            calls = [_named(call) for call in _loads(rest)]
    except (ValueError, KeyError, TypeError):
        return text, [], None
    return before.strip() or None, calls, None


HERMES = Reader(
    name="hermes",
    read=_hermes,
    marks=("<tool_call>", "</tool_call>", "<think>", "</think>"),
    opening="<tool_call>",
)
MISTRAL = Reader(
    name="mistral",
    read=_mistral,
    marks=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    opening="[TOOL_CALLS]",
)


def readers() -> Iterator[Reader]:
    """Every known reader, the likeliest first."""
    yield HERMES
    yield MISTRAL
    for name, form in _trl_forms().items():
        yield Reader(name=name, read=functools.partial(_parsed, form), marks=tuple(_texts(form)))


@functools.cache
def _trl_forms() -> dict[str, dict[str, Any]]:
    from trl import chat_template_utils

    return {
        name.removesuffix("_template"): form
        for name, form in vars(chat_template_utils).items()
        if name.endswith("_template")
        and isinstance(form, dict)
        and "tool_calls" in form.get("fields", {})
    }


def _texts(form: Any) -> Iterator[str]:
    """Every text in a form, as it is and without the escapes of a pattern."""
    if isinstance(form, str):
        yield form
        yield re.sub(r"\\(.)", r"\1", form)
    for part in form.values() if isinstance(form, dict) else form if isinstance(form, list) else ():
        yield from _texts(part)


_NAME = re.compile(r"[\w.-]{1,128}")


def _parsed(form: dict[str, Any], tokenizer: Any, text: str, tools: Any, prompt: str) -> Read:
    anchor = str(form.get("start_anchor", ""))
    before = prompt if anchor in prompt else anchor
    try:
        message = tokenizer.parse_response(
            text, schema=form, prefix=before, tools=list(tools) if tools else None
        )
        calls = [_named(call["function"]) for call in message.get("tool_calls") or ()]
        closed = re.findall(form["fields"]["tool_calls"]["close_pattern"], text)
        if len(closed) < len(calls) or not all(
            _NAME.fullmatch(c["function"]["name"]) for c in calls
        ):
            return text, [], None  # cut off in the middle
    except Exception:  # noqa: BLE001 (whatever a model wrote that is no call is text)
        return text, [], None
    thoughts = message.get("reasoning_content") or message.get("thinking")
    content = message.get("content")
    return (content if isinstance(content, str) and content else None), calls, thoughts or None
