"""The engine's HTTP endpoints: chat and token completions, adapters, health, as in vLLM."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stateset_agents.errors import BadInput
from stateset_agents.server import schema
from stateset_agents.server.engine.answers import chat_completion, completion, stream_chat
from stateset_agents.server.engine.engine import Engine
from stateset_agents.server.http import Refusal, install
from stateset_agents.server.schema import plain_body

LONG = 50_000
"""Characters of a prompt that is rendered in a thread."""


def build(engine: Engine, key: str | None = None) -> FastAPI:
    """The HTTP application of an engine."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.batcher.close()

    app = FastAPI(
        title="stateset-agents policy engine", lifespan=lifespan, strict_content_type=False
    )
    install(app, key=key)
    _add_status(app, engine)
    _add_adapters(app, engine)
    _add_completions(app, engine)
    return app


def _add_status(app: FastAPI, engine: Engine) -> None:
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


def _add_adapters(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/load_lora_adapter")
    async def load(body: schema.LoadAdapter) -> Response:
        engine.check_folder(body.lora_path)
        await asyncio.to_thread(engine.load, body.lora_name, body.lora_path)
        return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: schema.UnloadAdapter) -> Response:
        engine.unload(body.lora_name)
        return Response(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _add_completions(app: FastAPI, engine: Engine) -> None:
    @app.post("/tokenize")
    async def tokenize(given: schema.Tokenize) -> Response:
        ids = await _rendered(engine, plain_body(given))
        return JSONResponse({"count": len(ids), "max_model_len": engine.length, "tokens": ids})

    @app.post("/v1/completions")
    async def complete(given: schema.EngineCompletion, request: Request) -> Response:
        body = plain_body(given)
        if given.stream:
            raise Refusal(
                400, "stream: not supported here.", "unsupported_parameter", param="stream"
            )
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = await asyncio.to_thread(
                engine.tokenizer.encode, prompt, add_special_tokens=False
            )
        prompt = _ids(engine, prompt, "prompt")
        sampling = engine.request({"max_tokens": 16, **body}, prompt)
        await engine.run(sampling, request)
        return JSONResponse(completion(engine, sampling, body))

    @app.post("/v1/chat/completions")
    async def chat(given: schema.EngineChat, request: Request) -> Response:
        body = plain_body(given)
        prompt = _given(engine, body) or await _rendered(engine, body)
        sampling = engine.request(body, prompt)
        if body.get("stream"):
            sampling.stream = True
            return StreamingResponse(
                stream_chat(engine, sampling, body), media_type="text/event-stream"
            )
        await engine.run(sampling, request)
        return JSONResponse(chat_completion(engine, sampling, body))


async def _rendered(engine: Engine, body: dict[str, Any]) -> list[int]:
    """The prompt's ids. A long one is rendered in a thread, so that others are answered meanwhile."""
    tools = None if body.get("tool_choice") == "none" else body.get("tools")
    messages = body["messages"]
    try:
        if sum(len(str(message.get("content"))) for message in messages) < LONG:
            return engine.renderer.prompt(messages, tools)
        return await asyncio.to_thread(engine.renderer.prompt, messages, tools)
    except BadInput as error:
        raise Refusal(400, str(error), "invalid_value", param="messages") from None


def _ids(engine: Engine, ids: Any, param: str) -> list[int]:
    size = engine.vocabulary
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
    """The prompt as ids, if a call has it beside its messages, in vLLM's field; else None."""
    given = body.get("kv_transfer_params")
    ids = given.get("prompt_token_ids") if isinstance(given, dict) else None
    return None if ids is None else _ids(engine, ids, "kv_transfer_params.prompt_token_ids")
