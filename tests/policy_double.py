"""A policy server that does what a test tells it: it answers, drops, hangs, refuses, and counts what it was asked. Real HTTP."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from safetensors.torch import save_file

from stateset_agents.policy.pool import ReplicaPool


class Double:
    """`act`, where set, is asked before the usual answer; it may raise `Drop` to lose the answer after sampling."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.act: Callable[[int, dict[str, Any]], Awaitable[web.StreamResponse | None]] | None = (
            None
        )
        self.requests: list[dict[str, Any]] = []
        self.versions: dict[str, str] = {}
        self.running = self.most = self.loads = 0
        self.healthy = self.adapters = True
        self.port = 0
        self.request: web.Request = None  # type: ignore[assignment]  # the last one
        self.key = ""
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """As a killed process: what it had loaded is gone."""
        assert self._runner is not None
        await self._runner.cleanup()
        self.versions.clear()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.request = request
        number = next(self._numbers)
        self.requests.append(body)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        if body["model"] != "policy" and body["model"] not in self.versions:
            error = {"error": {"message": f"The model {body['model']!r} does not exist."}}
            return web.json_response(error, status=404)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.act is not None:
                other = await self.act(number, body)
                if other is not None:
                    return other
            await asyncio.sleep(self.seconds)
            return web.json_response(answer(number, body))
        except Drop:
            assert request.transport is not None
            request.transport.abort()
            raise
        finally:
            self.running -= 1

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no such thing"}}, status=404)

    async def _models(self, request: web.Request) -> web.Response:
        data = [{"id": "policy"}, *({"id": k, "root": v} for k, v in self.versions.items())]
        return web.json_response({"data": data})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.healthy else 503)

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.loads += 1
        self.versions[body["lora_name"]] = body["lora_path"]
        return web.json_response({})

    async def _unload(self, request: web.Request) -> web.Response:
        if not self.adapters:
            return web.json_response({"detail": "Not Found"}, status=404)
        name = (await request.json())["lora_name"]
        if self.versions.pop(name, None) is None:
            return web.json_response({"error": {"message": f"no {name}"}}, status=404)
        return web.json_response({})


class Drop(Exception):
    """The connection is cut: what was sampled is lost."""


async def lose_the_first(number: int, body: dict[str, Any]) -> None:
    """An `act`: the first answer is lost, the others come."""
    if number == 1:
        raise Drop


def answer(number: int, body: dict[str, Any], text: str = "hello") -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "token_ids": [number, 1],
        "logprobs": {"content": [entry(body), entry(body)]},
    }
    return {
        "id": f"chatcmpl-{number}-{id(body)}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "prompt_token_ids": [7, 8],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }


def entry(body: dict[str, Any], temperature: float | None = None) -> dict[str, Any]:
    """A sampled token among two, a nat apart at temperature 1."""
    gap = 1.0 / (temperature or body.get("temperature") or 1.0)
    likely = -math.log1p(math.exp(-gap))
    tops = [{"token": "x", "logprob": likely}, {"token": "y", "logprob": likely - gap}]
    return {**tops[0], "top_logprobs": tops}


@asynccontextmanager
async def doubles(count: int, seconds: float = 0.0) -> AsyncIterator[list[Double]]:
    made = [Double(seconds) for _ in range(count)]
    for double in made:
        await double.start()
    try:
        yield made
    finally:
        for double in made:
            await double.stop()


def small_adapter(folder: Path) -> Path:
    """Whole by its header, and of no model."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(4, 4)}, folder / "adapter_model.safetensors")
    return folder


BODY: dict[str, Any] = {
    "model": "policy",
    "messages": [{"role": "user", "content": "hi"}],
    "seed": 3,
}


def pooled(made: list[Double]) -> ReplicaPool:
    return ReplicaPool([double.url for double in made])
