"""Bodies of the engine's answers, whole and in chunks, as vLLM sends them."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from stateset_agents.server.engine import batcher
from stateset_agents.server.engine.engine import Engine
from stateset_agents.server.http import Refusal, event

NEVER = -9999.0
"""The log-probability of a token that cannot be sampled."""


def completion(engine: Engine, request: batcher.Request, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a completion of text or token ids."""
    choice: dict[str, Any] = {
        "index": 0,
        "text": engine.text_of(request),
        "finish_reason": request.finish_reason,
        "logprobs": None,
    }
    if body.get("logprobs") is not None:
        choice["logprobs"] = {
            "tokens": [engine.tokenizer.decode([i]) for i in request.ids],
            "token_logprobs": request.logprobs,
        }
    if body.get("return_token_ids"):
        choice |= {"token_ids": request.ids, "prompt_token_ids": request.prompt}
    return envelope("text_completion", "cmpl", request, [choice])


def chat_completion(
    engine: Engine, request: batcher.Request, body: dict[str, Any]
) -> dict[str, Any]:
    """The answer to a chat, with its tool calls."""
    answer_read = engine.read(request, body.get("tools"))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer_read.content,
        "tool_calls": answer_read.calls,
    }
    if answer_read.reasoning:
        message["reasoning_content"] = answer_read.reasoning
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if answer_read.calls else request.finish_reason,
        "stop_reason": engine.stopped_by(request),
        "logprobs": None,
    }
    if body.get("logprobs"):
        choice["logprobs"] = {"content": logprob_entries(engine, request, 0, len(request.ids))}
    answer = envelope("chat.completion", "chatcmpl", request, [choice])
    if body.get("return_token_ids"):
        choice["token_ids"] = request.ids
        answer["prompt_token_ids"] = request.prompt
    return answer


def logprob_entries(
    engine: Engine, request: batcher.Request, start: int, end: int
) -> list[dict[str, Any]]:
    # Cut to the same length: the batcher's thread may be adding the next token to one of them.
    sampled = zip(request.ids[start:end], request.logprobs[start:end], strict=True)
    entries = [_entry(engine, token, logprob) for token, logprob in sampled]
    for entry, likeliest in zip(entries, request.likeliest[start:end], strict=False):
        entry["top_logprobs"] = [_entry(engine, token, logprob) for token, logprob in likeliest]
    for entry in entries:
        entry.setdefault("top_logprobs", [])
    return entries


def _entry(engine: Engine, token: int, logprob: float) -> dict[str, Any]:
    text = engine.tokenizer.decode([token])
    # JSON has no infinity; vLLM says -9999 as well.
    return {"token": text, "logprob": max(logprob, NEVER), "bytes": list(text.encode())}


def usage(request: batcher.Request) -> dict[str, Any]:
    return {
        "prompt_tokens": len(request.prompt),
        "completion_tokens": len(request.ids),
        "total_tokens": len(request.prompt) + len(request.ids),
        "prompt_tokens_details": {"cached_tokens": request.cached},
    }


def envelope(
    kind: str, prefix: str, request: batcher.Request, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.version,
        "choices": choices,
        "usage": usage(request),
    }


async def stream_chat(
    engine: Engine, request: batcher.Request, body: dict[str, Any]
) -> AsyncIterator[str]:
    """Chunks as vLLM sends them: text as soon as it is certain, each tool call when it is complete."""
    base = envelope("chat.completion.chunk", "chatcmpl", request, [])
    del base["usage"]
    sent, streamed = 0, 0

    def chunk(
        delta: dict[str, Any],
        finish: str | None = None,
        upto: int | None = None,
        stopped: str | None = None,
    ) -> str:
        nonlocal streamed
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = stopped
        if upto is not None:
            if body.get("logprobs"):
                choice["logprobs"] = {"content": logprob_entries(engine, request, streamed, upto)}
            if body.get("return_token_ids"):
                choice["token_ids"] = request.ids[streamed:upto]
            streamed = upto
        return event({**base, "choices": [choice]})

    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    opening: dict[str, Any] = {**base, "choices": [first]}
    if body.get("return_token_ids"):
        opening["prompt_token_ids"] = request.prompt
    yield event(opening)
    try:
        async for count in engine.steps(request):
            if request.finish_reason is not None:
                continue
            text = engine.renderer.reader.visible(engine.text_of(request, count))
            if len(text) > sent and not text.endswith("\ufffd"):
                yield chunk({"content": text[sent:]}, upto=count)
                sent = len(text)
    except Refusal as refusal:
        yield event({"error": refusal.error})
        yield event("[DONE]")
        return
    whole = engine.read(request, body.get("tools"))
    answer, calls = whole.content, whole.calls
    if whole.reasoning:
        yield chunk({"reasoning_content": whole.reasoning})
    if len(answer or "") > sent:
        yield chunk({"content": (answer or "")[sent:]})
    for index, call in enumerate(calls):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    reason = "tool_calls" if calls else request.finish_reason
    yield chunk({}, reason, upto=len(request.ids), stopped=engine.stopped_by(request))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event({**base, "choices": [], "usage": usage(request)})
    yield event("[DONE]")
