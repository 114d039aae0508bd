"""The engine: a base model, its adapters, and the requests under way."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stateset_agents.errors import BadInput
from stateset_agents.server.engine import batcher, models
from stateset_agents.server.engine.batcher import Batcher
from stateset_agents.server.http import Refusal, number, while_connected


class Engine:
    """Samples from a base model and its adapters."""

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
        """The text of an answer, or of its first `count` tokens, up to a stop word. For an answer under way, without an end
        that may become a stop word."""
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
        """The stop word that ended an answer; None if none did."""
        text = self.text(request.ids)
        return next((stop for stop in request.stops if stop in text), None)

    async def steps(self, request: batcher.Request) -> AsyncIterator[int]:
        """Yields the number of tokens so far, until the request has ended."""
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
        """Sample to the end, or stop if the client disconnects."""

        async def sample() -> None:
            async for _ in self.steps(request):
                pass

        await while_connected(client, sample())


def _any_in(text: str, stops: list[str]) -> bool:
    return any(stop in text for stop in stops)
