"""A completion: the tokens of one answer, from the server's JSON until a recorder puts them into the trace.

server's JSON -> completion_of -> Completion -> deposit ... fetch(response id) -> ModelCall -> Trace

Token ids and log-probabilities never enter messages, graph state or checkpoints. LangChain carries nothing but the message from
a chat model to its callbacks, so a completion waits here under the id of its response.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_WAITING = 4096
"""The most completions that wait for a recorder."""
MAX_FETCHED = 256
"""The most that are kept after a recorder took them, for a second one."""


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
    at: float = field(default_factory=time.perf_counter, compare=False)
    """When it arrived, by the process's clock."""


def completion_of(raw: dict[str, Any], index: int = 0, *, tries: int = 1) -> Completion:
    """The tokens of one choice in a chat completion of vLLM or the embedded engine; empty if it has none."""
    choice = raw["choices"][index]
    logprobs = choice.get("logprobs")
    entries = (logprobs.get("content") if isinstance(logprobs, dict) else None) or []
    values: list[Any] = [e.get("logprob") for e in entries if isinstance(e, dict)]
    whole = len(values) == len(entries) and all(isinstance(v, int | float) for v in values)
    return Completion(
        response_id=str(raw.get("id") or ""),
        version=str(raw.get("model") or ""),
        prompt_ids=_ids(raw.get("prompt_token_ids")),
        sampled_ids=_ids(choice.get("token_ids")),
        # One that is missing would move all others to the wrong token: then there are none.
        logprobs=tuple(float(value) for value in values) if whole else (),
        finish_reason=str(choice.get("finish_reason") or ""),
        tries=tries,
    )


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        return ()
    return tuple(values)


def join_completions(chunks: Sequence[dict[str, Any]], *, tries: int = 1) -> Completion:
    """The tokens of a streamed answer, from its chunks. Empty for chunks of several choices, which cannot be told apart."""
    parts = [completion_of(chunk) for chunk in chunks]
    prompts = [part.prompt_ids for part in parts if part.prompt_ids]
    whole = {chunk["choices"][0].get("index", 0) for chunk in chunks} == {0} and len(prompts) == 1
    reasons = [part.finish_reason for part in parts if part.finish_reason]
    # A piece without its log-probabilities would move those of the others.
    whole = whole and all(len(part.logprobs) == len(part.sampled_ids) for part in parts)
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
    """The assistant message of a streamed answer, from its chunks, of any server that speaks the protocol, or nearly."""
    texts, calls, extra = dict.fromkeys(_TEXTS, ""), _Calls(), dict[str, Any]()
    for chunk in chunks:
        delta = chunk["choices"][0].get("delta")
        if not isinstance(delta, dict):
            continue
        for name, value in delta.items():
            if name in _TEXTS:
                texts[name] += _text(value)
            elif name == "tool_calls":
                for piece in value or []:
                    calls.add(piece)
            elif name == "function_call" and isinstance(value, dict):
                calls.add({"index": -1, "function": value})
            elif name == "audio" and isinstance(value, dict):
                audio = extra.setdefault("audio", {"transcript": ""})
                audio["transcript"] += _text(value.get("transcript"))
            elif name != "role" and value:
                extra[name] = value
    message: dict[str, Any] = {"role": "assistant", **texts, **extra}
    return {**message, "tool_calls": calls.whole} if calls.whole else message


def _text(content: Any) -> str:
    """The words of a piece: text, or a list of blocks."""
    if isinstance(content, list):
        return "".join(_text(p.get("text") if isinstance(p, dict) else p) for p in content)
    return content if isinstance(content, str) else ""


class _Calls:
    """Tool calls that arrive in pieces. A new id begins a new call, also at an index that is taken; a name that is sent again in
    each piece is the same name; arguments may be an object."""

    def __init__(self) -> None:
        self.whole: list[dict[str, Any]] = []
        self._at: dict[Any, dict[str, Any]] = {}

    def add(self, piece: Any) -> None:
        if not isinstance(piece, dict):
            return
        index, given = piece.get("index", 0), str(piece.get("id") or "")
        call = self._at.get(index)
        if call is None or (given and call["id"] and given != call["id"]):
            call = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            self._at[index] = call
            self.whole.append(call)
        call["id"] = call["id"] or given
        parts = piece.get("function")
        for name, part in (parts if isinstance(parts, dict) else {}).items():
            text = json.dumps(part) if isinstance(part, dict | list) else str(part or "")
            known = call["function"].get(name, "")
            call["function"][name] = known if name == "name" and text == known else known + text


_waiting: OrderedDict[str, Completion | None] = OrderedDict()
_fetched: OrderedDict[str, Completion] = OrderedDict()


def deposit(completion: Completion) -> None:
    """Keep a completion for the recorder. If two answers have the same id, neither is kept."""
    _fetched.pop(completion.response_id, None)
    twice = completion.response_id in _waiting
    _waiting[completion.response_id] = None if twice else completion
    while len(_waiting) > MAX_WAITING:
        _waiting.popitem(last=False)


def unclaimed(since: float) -> int:
    """The number of completions since then that nobody took for a second or longer."""
    count, now = 0, time.perf_counter()
    for completion in reversed(_waiting.values()):
        if completion is None:
            continue
        if completion.at < since:
            break
        count += completion.at < now - 1.0
    return count


def fetch(response_id: str) -> Completion | None:
    """The completion of a response; None if our policy did not make it, or it has no tokens. It stays for a while: several
    recorders may listen to one run."""
    completion = _waiting.pop(response_id, None)
    if completion is None:
        return _fetched.get(response_id)
    _fetched[response_id] = completion
    while len(_fetched) > MAX_FETCHED:
        _fetched.popitem(last=False)
    return completion
