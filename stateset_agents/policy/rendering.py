"""From messages to token ids and back, by a model's chat template: one renderer for acting, imitating and preferring.

messages, tools  ->  prompt ids          what the model is asked with
answer           ->  answer ids          what it is taught to say: what comes after the prompt, down to the token that ends it
ids              ->  text, calls         what it said, by the reader that reads the template's own calls

The reader is found by a round trip: a call that the template writes has to come out as it was.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from stateset_agents.errors import BadInput
from stateset_agents.policy.chat_template import PROBE_TOOL, complete_template, hidden_by
from stateset_agents.policy.tool_readers import HERMES, Reader, readers

Message = dict[str, Any]
Tools = Sequence[dict[str, Any]] | None

TAIL = 64
"""Tokens of a prompt in which an answer may have begun already, with a thought for example."""
_USER = {"role": "user", "content": "Please look it up."}
SENTINEL: dict[str, Any] = {
    "id": 'W"1\u00fc',
    "count": 3,
    "deep": {"list": [1, "two"], "yes": True},
}
"""Arguments that come back otherwise if they are quoted twice, escaped or cut."""
SENTINEL_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "count": {"type": "integer"},
                "deep": {"type": "object"},
            },
        },
    },
}


class Unrenderable(ValueError):
    """Messages or an answer that a template cannot write so that they can be read back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was read from sampled tokens."""

    content: str | None
    calls: list[dict[str, Any]]
    reasoning: str | None = None


class Renderer:
    """A tokenizer with its complete chat template, its stop tokens and its reader."""

    def __init__(self, tokenizer: Any, *, stops: Sequence[int] = ()) -> None:
        """`stops`: the tokens that end an answer, besides the tokenizer's own. Raises BadInput for a template that leaves something
        out even with ours before it."""
        self.tokenizer = tokenizer
        own = tokenizer.chat_template
        if isinstance(own, Mapping):  # several by name
            own = own.get("tool_use") or own.get("default")
        try:
            tokenizer.chat_template = complete_template(own, self._with_template)
        except ValueError as missing:
            raise BadInput(
                f"Expected a chat template that can be given tools, found that {tokenizer.name_or_path!r}'s leaves out {missing} even "
                "with ours before it (a template for images, perhaps). Give the model's folder another chat_template.jinja."
            ) from None
        self.in_words = bool(own) and tokenizer.chat_template != own
        """Whether tools are told in words, since the model's own template leaves something out."""
        known = (*stops, tokenizer.eos_token_id)
        self.stops = frozenset(i for i in known if isinstance(i, int) and i >= 0)
        if not self.stops:
            raise BadInput(
                f"Expected a tokenizer with a token that ends an answer, found none in {tokenizer.name_or_path!r}: set eos_token in its "
                "tokenizer_config.json, or eos_token_id in generation_config.json."
            )

    def prompt(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """A prompt's ids. Raises BadInput for messages that the template refuses."""
        return self._ids(self._text(messages, tools, prompting=True))

    def answer(
        self, messages: Sequence[Message], tools: Tools, answer: Message
    ) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of an answer to it, which ends in a stop token. Raises Unrenderable if it cannot be read back."""
        try:
            prompt = self._text(messages, tools, prompting=True)
            base = self._text(messages, tools, prompting=False)
            whole = self._text([*messages, answer], tools, prompting=False)
        except BadInput as error:
            raise Unrenderable(str(error)) from None
        if whole.startswith(prompt):
            target = self._ids(whole[len(prompt) :])
        elif prompt.startswith(base) and whole.startswith(base):
            # A prompt that begins an answer otherwise than it is written afterwards, as with thoughts that are left out later.
            opening, written = self._ids(prompt[len(base) :]), self._ids(whole[len(base) :])
            common = 0
            while common < min(len(opening), len(written)) and opening[common] == written[common]:
                common += 1
            target = written[common:]
        else:
            raise Unrenderable(
                "the template writes earlier messages otherwise once there is an answer"
            )
        ended = self._ended(target, messages, tools, answer)
        given = self._ids(prompt)
        self._check(ended, tools, answer, given)
        return given, ended

    def _ended(
        self, target: list[int], messages: Sequence[Message], tools: Tools, answer: Message
    ) -> list[int]:
        """An answer down to the token that ends it."""
        places = [place for place, token in enumerate(target) if token in self.stops]
        if places:
            return target[: places[0] + 1]
        # The next turn's first token is the end, as with templates that write none; otherwise the tokenizer's own.
        after: list[Message] = [{"role": "user", "content": "?"}]
        if calls := answer.get("tool_calls"):
            after = [
                {
                    "role": "tool",
                    "tool_call_id": c.get("id"),
                    "name": c["function"]["name"],
                    "content": "?",
                }
                for c in calls
            ]
        try:
            whole = self._text([*messages, answer], tools, prompting=False)
            longer = self._text([*messages, answer, *after], tools, prompting=False)
        except BadInput:
            whole = longer = ""
        follows = self._ids(longer[len(whole) :])[:1] if longer.startswith(whole) else []
        end = follows[0] if follows and follows[0] in self.stops else self.tokenizer.eos_token_id
        if end is None:
            end = min(self.stops)
        return [*target, int(end)]

    def _check(
        self, target: list[int], tools: Tools, answer: Message, prompt: Sequence[int]
    ) -> None:
        read = self.read(target, tools, prompt)
        calls = [(c["function"]["name"], _object(c)) for c in answer.get("tool_calls") or ()]
        back = [(c["function"]["name"], _object(c)) for c in read.calls]
        if back != calls:
            raise Unrenderable(f"the call comes back as {back}")
        text = _plain(answer.get("content"))
        if text.strip() and text.strip() not in (read.content or ""):
            raise Unrenderable("the words of the answer do not come back")

    def read(self, ids: Sequence[int], tools: Tools = None, prompt: Sequence[int] = ()) -> Answer:
        """What was sampled after a prompt, as text and calls. What is not a whole call stays text."""
        return self.read_text(self.decode(ids), tools, prompt)

    def read_text(self, text: str, tools: Tools = None, prompt: Sequence[int] = ()) -> Answer:
        """Like `read`, of what `decode` made."""
        before = self.tokenizer.decode(list(prompt[-TAIL:]), skip_special_tokens=False)
        content, calls, reasoning = self.reader.read(self.tokenizer, text, tools, str(before))
        return Answer(content=self._cleaned(content), calls=calls, reasoning=reasoning)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens, but for those that the reader needs."""
        shown = [i for i in ids if i not in self._hidden_ids]
        return str(self.tokenizer.decode(shown, skip_special_tokens=False))

    @cached_property
    def reader(self) -> Reader:
        """The reader of the template's calls. Raises BadInput if none of those known reads them back."""
        if self.in_words:
            return HERMES
        answer = {
            "role": "assistant",
            "content": "",
            "tool_calls": [call_of("look_up", json.dumps(SENTINEL, ensure_ascii=False))],
        }
        tried = []
        for reader in readers():
            self.__dict__["reader"] = reader
            self.__dict__.pop("_hidden_ids", None)
            try:
                self.answer([_USER], [SENTINEL_TOOL], answer)
            except Unrenderable as error:
                tried.append(f"{reader.name}: {error}")
                continue
            return reader
        self.__dict__.pop("reader", None)
        raise BadInput(
            f"Expected a chat template whose calls can be read, found that no reader reads those of {self.tokenizer.name_or_path!r}: "
            f"{'; '.join(tried)[:400]}"
        )

    @cached_property
    def _hidden_ids(self) -> frozenset[int]:
        special = zip(
            self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True
        )
        return frozenset(i for i, text in special if not self.reader.needs(text))

    def _cleaned(self, content: str | None) -> str | None:
        for text in self.tokenizer.all_special_tokens:
            if content and text in content:
                content = content.replace(text, "")
        return content or None

    def _text(self, messages: Sequence[Message], tools: Tools, *, prompting: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [readable(message) for message in messages], tools=list(tools) if tools else None, tokenize=False,
                    add_generation_prompt=prompting,
                )
            )  # fmt: skip
        except (ValueError, TypeError, TemplateError, KeyError, AttributeError) as error:
            raise BadInput(f"The chat template refused the messages: {error}") from None

    def _with_template(
        self, template: str
    ) -> Callable[[list[Message], list[dict[str, Any]] | None], str]:
        def render(messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    [readable(message) for message in messages], tools=tools, tokenize=False, add_generation_prompt=True,
                    chat_template=template,
                )
            )  # fmt: skip

        return render

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def renderer_of(path: str | Path) -> Renderer:
    """The renderer of a model in a folder or on the hub. Raises BadInput, naming what is missing."""
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(
            f"Expected a tokenizer in {str(path)!r}, found {_first_line(error)}"
        ) from None
    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except (OSError, ValueError):
        ends = None
    return Renderer(
        tokenizer, stops=ends if isinstance(ends, list) else [ends] if ends is not None else []
    )


def call_of(name: str, arguments: str) -> dict[str, Any]:
    """A call as OpenAI's protocol has it."""
    return {
        "id": "call12345",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def readable(message: Message) -> Message:
    """A message as templates expect it: plain text, known roles, arguments as an object."""
    role = "system" if message["role"] == "developer" else message["role"]
    made = {**message, "role": role, "content": _plain(message.get("content"))}
    if calls := made.pop("tool_calls", None):  # some templates take an empty list for calls
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _object(call)}} for call in calls
        ]
    return made


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _object(call: dict[str, Any]) -> Any:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _first_line(error: Exception) -> str:
    lines = re.split(r"\n", str(error).strip())
    return lines[0] or type(error).__name__


__all__ = [
    "PROBE_TOOL",
    "Answer",
    "Renderer",
    "Unrenderable",
    "call_of",
    "hidden_by",
    "readable",
    "renderer_of",
]
