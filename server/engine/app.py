"""The engine's HTTP face: chat and token completions, adapters, health, as vLLM answers them."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stateset_agents.errors import BadInput
from stateset_agents.server.engine import batcher, models, protocol
from stateset_agents.server.engine.batcher import Batcher
from stateset_agents.server.http import (
    Refusal,
    body_of,
    event,
    install,
    messages_of,
    number,
    while_connected,
)


class Engine:
    """A base model, its adapters, and the requests under way."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        slots: int = 96,
        length: int = 2048,
    ) -> None:
        limit = getattr(base.config, "max_position_embeddings", length)
        self.length = min(length, limit)
        self.tokenizer = tokenizer
        self.name = name
        self.base = base
        self.models: dict[str, PreTrainedModel] = {name: base}
        self.adapters: dict[str, str] = {}
        self._loading = threading.Lock()
        self.batcher = Batcher(base, slots=slots, length=self.length)
        ends = base.generation_config.eos_token_id if base.generation_config else None
        known = ends if isinstance(ends, list) else [ends]
        self.stop_ids = frozenset(i for i in (*known, tokenizer.eos_token_id) if isinstance(i, int))

    def load(self, name: str, path: str) -> None:
        with self._loading:  # a second one under the same name waits, and is told
            if name in self.models:
                raise Refusal(
                    400,
                    f"Expected a new adapter name, found {name!r} loaded already.",
                    "adapter_exists",
                )
            try:
                self.models[name] = models.with_adapter(self.base, path)
            except BadInput as error:
                raise Refusal(400, str(error), "bad_adapter") from None
            self.adapters[name] = path

    def unload(self, name: str) -> None:
        if name not in self.adapters:
            raise Refusal(404, f"Expected a loaded adapter, found {name!r}.", "adapter_not_found")
        del self.adapters[name]
        del self.models[name]

    def request(self, body: dict[str, Any], prompt: list[int]) -> batcher.Request:
        """A request from a body's sampling fields. Raises Refusal for what it cannot do."""
        model = body.get("model") or self.name
        if model not in self.models:
            raise Refusal(
                404, f"The model {model!r} does not exist.", "model_not_found", param="model"
            )
        if (body.get("n") or 1) != 1:
            raise Refusal(
                400, "n: expected 1; send several requests instead.", "invalid_value", param="n"
            )
        room = self.length - len(prompt)
        if room < 1:
            raise Refusal(
                400,
                f"This model's maximum context length is {self.length} tokens, and the prompt has "
                f"{len(prompt)}. Shorten the messages.",
                "context_length_exceeded",
            )
        limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else [str(stop) for stop in stops]
        seed = number(body, "seed", -1, -(2**63), 2**63)
        return batcher.Request(
            prompt=prompt,
            version=model,
            model=self.models[model],
            temperature=number(body, "temperature", 1.0, 0.0, 2.0),
            top_p=number(body, "top_p", 1.0, 1e-6, 1.0),
            top_k=int(number(body, "top_k", 0, -1, 1e6)),
            max_tokens=min(int(number(body, limit, room, 1, 1e9)), room),
            seed=None if body.get("seed") is None else int(seed),
            top=int(number(body, "top_logprobs", 0, 0, 20)),
            stop_ids=frozenset() if body.get("ignore_eos") else self.stop_ids,
            stop=(lambda ids: _any_in(self.text(ids), stops)) if stops else None,
            stops=tuple(stops),
            notify=lambda request: None,
        )

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def text_of(self, request: batcher.Request, count: int | None = None) -> str:
        """The text of an answer, or of its first tokens, up to a word that ends it; of one under way, what surely is not its beginning."""
        text = self.text(request.ids[:count])
        stops = [text.index(stop) for stop in request.stops if stop in text]
        if stops:
            return text[: min(stops)]
        if count is not None:
            for stop in request.stops:
                kept = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
                text = text[: len(text) - kept]
        return text

    def stopped_by(self, request: batcher.Request) -> str | None:
        """The word that ended an answer; None where it was the end of a turn, or no word."""
        text = self.text(request.ids)
        return next((stop for stop in request.stops if stop in text), None)

    async def steps(self, request: batcher.Request) -> AsyncIterator[int]:
        """Yields the number of tokens so far, last when the request has ended."""
        loop = asyncio.get_running_loop()
        changed: asyncio.Queue[int] = asyncio.Queue()

        def notify(request: batcher.Request) -> None:
            loop.call_soon_threadsafe(changed.put_nowait, len(request.ids))

        request.notify = notify
        self.batcher.submit(request)
        try:
            while True:
                count = await changed.get()
                yield count
                if request.finish_reason == "error":
                    raise Refusal(500, f"The engine broke: {self.batcher.broken}", "engine_broken")
                if request.finish_reason is not None and count == len(request.ids):
                    return
        finally:
            request.cancelled = request.finish_reason is None

    async def run(self, request: batcher.Request, client: Request) -> None:
        """Sample to the end, or stop when the client leaves."""

        async def sample() -> None:
            async for _ in self.steps(request):
                pass

        await while_connected(client, sample())


def build(engine: Engine, key: str | None = None) -> FastAPI:
    """The application around an engine."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.batcher.close()

    app = FastAPI(title="stateset-agents policy engine", lifespan=lifespan)
    install(app, key=key)

    @app.get("/health")
    async def health() -> Response:
        if engine.batcher.broken is not None:
            raise Refusal(503, f"The engine broke: {engine.batcher.broken}", "engine_broken")
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def list_models() -> Response:
        data = [
            {"id": name, "object": "model", "owned_by": "stateset-agents", "root": path,
             "parent": parent, "max_model_len": engine.length, "created": 0}
            for name, path, parent in (
                (engine.name, engine.base.config.name_or_path, None),
                *((name, path, engine.name) for name, path in engine.adapters.items()),
            )
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": data})

    @app.get("/metrics")
    async def metrics() -> Response:
        work = engine.batcher
        counts = {
            "num_requests_running": len(work.running),
            "num_requests_waiting": len(work.backlog) + work.waiting.qsize(),
            "generation_tokens_total": work.tokens_sampled,
            "prefix_cache_queries_total": work.tokens_prompted,
            "prefix_cache_hits_total": work.tokens_cached,
        }
        label = f'{{model_name="{engine.name}"}}'
        lines = "".join(f"vllm:{name}{label} {value}\n" for name, value in counts.items())
        return Response(lines, media_type="text/plain; version=0.0.4")

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        body = await body_of(request)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not isinstance(name, str) or not isinstance(path, str):
            raise Refusal(400, "Expected lora_name and lora_path.", "invalid_value")
        await asyncio.to_thread(engine.load, name, path)
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        name = str((await body_of(request)).get("lora_name"))
        engine.unload(name)
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await body_of(request)
        try:
            ids = protocol.render(engine.tokenizer, messages_of(body), body.get("tools"))
        except BadInput as error:
            raise Refusal(400, str(error), "invalid_value", param="messages") from None
        return JSONResponse({"count": len(ids), "max_model_len": engine.length, "tokens": ids})

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await body_of(request)
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            prompt = engine.tokenizer.encode(prompt, add_special_tokens=False)
        prompt = _ids(engine, prompt, "prompt")
        sampling = engine.request({"max_tokens": 16, **body}, prompt)
        await engine.run(sampling, request)
        choice: dict[str, Any] = {
            "index": 0,
            "text": engine.text_of(sampling),
            "finish_reason": sampling.finish_reason,
            "logprobs": None,
        }
        if body.get("logprobs") is not None:
            choice["logprobs"] = {
                "tokens": [engine.tokenizer.decode([i]) for i in sampling.ids],
                "token_logprobs": sampling.logprobs,
            }
        if body.get("return_token_ids"):
            choice |= {"token_ids": sampling.ids, "prompt_token_ids": prompt}
        return JSONResponse(_envelope("text_completion", "cmpl", sampling, [choice]))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await body_of(request)
        try:
            prompt = _given(engine, body) or protocol.render(
                engine.tokenizer, messages_of(body), body.get("tools")
            )
        except BadInput as error:
            raise Refusal(400, str(error), "invalid_value", param="messages") from None
        sampling = engine.request(body, prompt)
        if body.get("stream"):
            sampling.stream = True
            return StreamingResponse(
                _stream(engine, sampling, body), media_type="text/event-stream"
            )
        await engine.run(sampling, request)
        text, calls = protocol.read_answer(engine.text_of(sampling))
        message: dict[str, Any] = {"role": "assistant", "content": text, "tool_calls": calls}
        choice: dict[str, Any] = {
            "index": 0,
            "message": message,
            "finish_reason": "tool_calls" if calls else sampling.finish_reason,
            "stop_reason": engine.stopped_by(sampling),
            "logprobs": None,
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": _entries(engine, sampling, 0, len(sampling.ids))}
        answer = _envelope("chat.completion", "chatcmpl", sampling, [choice])
        if body.get("return_token_ids"):
            choice["token_ids"] = sampling.ids
            answer["prompt_token_ids"] = sampling.prompt
        return JSONResponse(answer)

    return app


def _ids(engine: Engine, ids: Any, param: str) -> list[int]:
    size = len(engine.tokenizer)
    if (
        not isinstance(ids, list)
        or not ids
        or not all(type(i) is int and 0 <= i < size for i in ids)
    ):
        raise Refusal(
            400,
            f"{param}: expected text or token ids from 0 to {size - 1}.",
            "invalid_value",
            param=param,
        )
    return ids


def _given(engine: Engine, body: dict[str, Any]) -> list[int] | None:
    """The prompt as ids, where a call brings it beside its messages: a field of vLLM's."""
    given = body.get("kv_transfer_params")
    ids = given.get("prompt_token_ids") if isinstance(given, dict) else None
    return None if ids is None else _ids(engine, ids, "kv_transfer_params.prompt_token_ids")


def _any_in(text: str, stops: list[str]) -> bool:
    return any(stop in text for stop in stops)


def _entries(
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
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _usage(request: batcher.Request) -> dict[str, Any]:
    return {
        "prompt_tokens": len(request.prompt),
        "completion_tokens": len(request.ids),
        "total_tokens": len(request.prompt) + len(request.ids),
        "prompt_tokens_details": {"cached_tokens": request.cached},
    }


def _envelope(
    kind: str, prefix: str, request: batcher.Request, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.version,
        "choices": choices,
        "usage": _usage(request),
    }


async def _stream(
    engine: Engine, request: batcher.Request, body: dict[str, Any]
) -> AsyncIterator[str]:
    """Chunks as vLLM sends them: text as it is certain, each tool call once it is complete."""
    base = _envelope("chat.completion.chunk", "chatcmpl", request, [])
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
                choice["logprobs"] = {"content": _entries(engine, request, streamed, upto)}
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
            text = protocol.visible(engine.text_of(request, count))
            if len(text) > sent and not text.endswith("\ufffd"):
                yield chunk({"content": text[sent:]}, upto=count)
                sent = len(text)
    except Refusal as refusal:
        yield event({"error": refusal.error})
        yield event("[DONE]")
        return
    answer, calls = protocol.read_answer(engine.text_of(request))
    if len(answer or "") > sent:
        yield chunk({"content": (answer or "")[sent:]})
    for index, call in enumerate(calls):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    reason = "tool_calls" if calls else request.finish_reason
    yield chunk({}, reason, upto=len(request.ids), stopped=engine.stopped_by(request))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event({**base, "choices": [], "usage": _usage(request)})
    yield event("[DONE]")
