"""The engine: a base model, its adapters, and the requests under way."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from transformers import PreTrainedModel

from stateset_agents.errors import BadInput
from stateset_agents.policy.rendering import Answer, Renderer
from stateset_agents.server.engine import batcher, models
from stateset_agents.server.engine.batcher import Batcher
from stateset_agents.server.http import Refusal, while_connected


class Engine:
    """Samples from a base model and its adapters."""

    def __init__(
        self,
        base: PreTrainedModel,
        renderer: Renderer,
        name: str,
        *,
        slots: int = 96,
        length: int = 2048,
        adapters_from: Sequence[Path] = (),
    ) -> None:
        """`adapters_from`: the folders below which clients may have adapters loaded."""
        limit = getattr(base.config, "max_position_embeddings", length)
        self.length = min(length, limit)
        self.renderer, self.tokenizer = renderer, renderer.tokenizer
        self.name = name
        self.base = base
        self.models: dict[str, PreTrainedModel] = {name: base}
        self.adapters: dict[str, str] = {}
        self._folders = [folder.resolve() for folder in adapters_from]
        self._loading = threading.Lock()
        self.batcher = Batcher(slots=slots, length=self.length)
        self.vocabulary = max(len(self.tokenizer), base.get_input_embeddings().num_embeddings)
        """Ids that the model may be given and may sample; some models have more than their tokenizer."""
        self.stop_ids = renderer.stops

    def check_folder(self, path: str) -> None:
        """Raises Refusal for an adapter outside the folders that clients may load from."""
        place = Path(path).resolve() if "\0" not in path else Path("/")
        if not any(place.is_relative_to(folder) for folder in self._folders):
            allowed = ", ".join(map(str, self._folders)) or "no folder"
            raise Refusal(
                400, f"lora_path: expected an adapter below {allowed}. Start the engine with --adapters-from.",
                "bad_adapter", param="lora_path",
            )  # fmt: skip

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
        """A request from a checked body's sampling fields. Raises Refusal for a model that is not there and a prompt that is too
        long."""
        model = body.get("model") or self.name
        if model not in self.models:
            raise Refusal(
                404, f"The model {model!r} does not exist.", "model_not_found", param="model"
            )
        room = self.length - len(prompt)
        if room < 1:
            raise Refusal(
                400,
                f"This model's maximum context length is {self.length} tokens, and the prompt has "
                f"{len(prompt)}. Shorten the messages.",
                "context_length_exceeded",
            )
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or room
        return batcher.Request(
            prompt=prompt,
            version=model,
            model=self.models[model],
            temperature=_or(body.get("temperature"), 1.0),
            top_p=_or(body.get("top_p"), 1.0),
            top_k=_or(body.get("top_k"), 0),
            max_tokens=min(limit, room),
            seed=body.get("seed"),
            top=body.get("top_logprobs") or 0,
            stop_ids=frozenset() if body.get("ignore_eos") else self.stop_ids,
            stop=(lambda ids: _any_in(self.text(ids), stops)) if stops else None,
            stops=tuple(stops),
            notify=lambda request: None,
        )

    def text(self, ids: list[int]) -> str:
        """Text with the special tokens that a tool call is written with, and no others."""
        return self.renderer.decode(ids)

    def read(self, request: batcher.Request, tools: Sequence[dict[str, Any]] | None) -> Answer:
        """What was sampled, as text up to a stop word, calls and thoughts."""
        ids = request.ids
        if request.stops:
            text = self.text_of(request)
            return self.renderer.read_text(text, tools, request.prompt)
        return self.renderer.read(ids, tools, request.prompt)

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


Value = TypeVar("Value")


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _any_in(text: str, stops: list[str]) -> bool:
    return any(stop in text for stop in stops)
