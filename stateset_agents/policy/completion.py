"""A completion: the tokens of one answer, from the server's JSON until a recorder puts them into the trace.

server's JSON -> completion_of -> Completion -> deposit ... fetch(response id) -> ModelCall -> Trace

Token ids and log-probabilities never enter messages, graph state or checkpoints. LangChain carries nothing but the message from
a chat model to its callbacks, so a completion waits here under the id of its response.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_WAITING = 4096
"""The most completions that wait for a recorder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The tokens of one answer, as the engine reported them."""

    response_id: str
    version: str
    prompt_ids: tuple[int, ...]
    sampled_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    tries: int = 1
    """How often the call was sent until this answer arrived."""


def completion_of(raw: dict[str, Any], index: int = 0, *, tries: int = 1) -> Completion:
    """The tokens of one choice in a chat completion of vLLM or the embedded engine; empty if it has none."""
    choice = raw["choices"][index]
    entries = (choice.get("logprobs") or {}).get("content") or []
    return Completion(
        response_id=raw["id"],
        version=raw.get("model") or "",
        prompt_ids=tuple(raw.get("prompt_token_ids") or ()),
        sampled_ids=tuple(choice.get("token_ids") or ()),
        logprobs=tuple(entry["logprob"] for entry in entries),
        finish_reason=choice.get("finish_reason") or "",
        tries=tries,
    )


def join_completions(chunks: Sequence[dict[str, Any]], *, tries: int = 1) -> Completion:
    """The tokens of a streamed answer, from its chunks. Empty for chunks of several choices, which cannot be told apart."""
    parts = [completion_of(chunk) for chunk in chunks]
    prompts = [part.prompt_ids for part in parts if part.prompt_ids]
    whole = {chunk["choices"][0].get("index", 0) for chunk in chunks} == {0} and len(prompts) == 1
    reasons = [part.finish_reason for part in parts if part.finish_reason]
    return Completion(
        response_id=parts[0].response_id,
        version=parts[0].version,
        prompt_ids=prompts[0] if whole else (),
        sampled_ids=tuple(token for part in parts for token in part.sampled_ids) if whole else (),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs) if whole else (),
        finish_reason=reasons[-1] if reasons else "",
        tries=tries,
    )


_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""Fields of a message that arrive in pieces when it is streamed."""


def join_message(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The assistant message of a streamed answer, from its chunks."""
    texts, calls = dict.fromkeys(_TEXTS, ""), dict[int, dict[str, Any]]()
    for chunk in chunks:
        delta = chunk["choices"][0].get("delta") or {}
        for name in _TEXTS:
            texts[name] += delta.get(name) or ""
        for piece in delta.get("tool_calls") or []:
            call = calls.setdefault(
                piece.get("index", 0),
                {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
            )
            call["id"] = piece.get("id") or call["id"]
            for name, part in (piece.get("function") or {}).items():
                call["function"][name] = call["function"].get(name, "") + (part or "")
    message: dict[str, Any] = {"role": "assistant", **texts}
    return {**message, "tool_calls": [calls[n] for n in sorted(calls)]} if calls else message


_waiting: OrderedDict[str, Completion | None] = OrderedDict()


def deposit(completion: Completion) -> None:
    """Keep a completion for the recorder. If two answers have the same id, neither is kept."""
    twice = completion.response_id in _waiting
    _waiting[completion.response_id] = None if twice else completion
    while len(_waiting) > MAX_WAITING:
        _waiting.popitem(last=False)


def fetch(response_id: str) -> Completion | None:
    """Take the completion of a response; None if our policy did not make it, or it has no tokens."""
    return _waiting.pop(response_id, None)
