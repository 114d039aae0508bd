"""The batcher: every step moves each waiting or running request forward, in one pass per model.

New tokens of all requests lie side by side in one row. Keys and values of a conversation stay in its slot, so that the next
turn computes only its new suffix.
"""

import queue
import random
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from stateset_agents.prefix import common_prefix
from stateset_agents.server.engine.attention import Batch, Slots


@dataclass(slots=True, kw_only=True)
class Request:
    """One sequence to sample. `ids` and `logprobs` grow while it runs."""

    prompt: list[int]
    version: str
    """The requested model name."""
    model: PreTrainedModel
    """The weights it samples from, even if others are loaded under this name meanwhile."""
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None
    stop_ids: frozenset[int]
    notify: Callable[["Request"], None]
    """Called in the engine's thread at the end, and with `stream` after every token."""
    stop: Callable[[list[int]], bool] | None = None
    stops: tuple[str, ...] = ()
    """Stop words; the answer's text ends before them."""
    stream: bool = False
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: int = 0
    """Number of likeliest tokens to report for each sampled one."""
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    """The likeliest tokens with their log-probabilities."""
    finish_reason: str | None = None
    cached: int = 0
    """Prompt tokens from the cache."""
    cancelled: bool = False
    slot: int = -1
    rng: random.Random = field(default_factory=random.Random)


@dataclass(slots=True)
class Slot:
    tokens: list[int] = field(default_factory=list)
    """Tokens in the slot's cache."""
    model: "weakref.ref[PreTrainedModel] | None" = None
    """The model of these keys and values."""
    busy: bool = False
    used: float = 0.0


class Batcher:
    """Owns the slots; runs in its own thread."""

    def __init__(self, *, slots: int, length: int) -> None:
        self.slots = [Slot() for _ in range(slots)]
        self.cache = Slots(slots, length)
        self.waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.backlog: list[Request] = []
        self.running: list[Request] = []
        self.tokens_computed = 0
        self.tokens_cached = 0
        self.tokens_prompted = 0
        self.tokens_sampled = 0
        self.broken: str | None = None
        """Why the engine cannot sample any more."""
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        request.rng.seed(request.seed)
        self.waiting.put(request)

    def close(self) -> None:
        self.waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        while True:
            idle = not self.running and not self.backlog
            try:
                while True:
                    request = self.waiting.get(block=idle)
                    if request is None:
                        return
                    self.backlog.append(request)
                    idle = False
            except queue.Empty:
                pass
            try:
                if self.broken is None:
                    self._step()
            except Exception as error:  # noqa: BLE001 (a dead thread would leave every client waiting)
                traceback.print_exc()
                self.broken = f"{type(error).__name__}: {error}"
            if self.broken is not None:
                for request in [*self.running, *self.backlog]:
                    request.finish_reason = "error"
                    request.notify(request)
                self.running, self.backlog = [], []

    def _step(self) -> None:
        for request in [r for r in self.running if r.cancelled]:
            self._finish(request, "abort")
        by_model: dict[PreTrainedModel, tuple[list[Request], list[Request]]] = {}
        for request in self.running:
            by_model.setdefault(request.model, ([], []))[1].append(request)
        while self.backlog:
            request = self.backlog[0]
            if request.cancelled:
                self.backlog.pop(0)
                request.finish_reason = "abort"
                request.notify(request)
                continue
            if not self._admit(request):
                break
            self.running.append(self.backlog.pop(0))
            by_model.setdefault(request.model, ([], []))[0].append(request)
        for model, (fresh, going) in by_model.items():
            self._forward(model, fresh, going)

    def _admit(self, request: Request) -> bool:
        """Find a slot: the conversation's own if it still exists, else the least recently used one."""
        free = [index for index, slot in enumerate(self.slots) if not slot.busy]
        if not free:
            return False
        best, shared, known = -1, 0, request.prompt[:-1]
        for index, slot in enumerate(self.slots):
            if (
                slot.model is not None
                and slot.model() is request.model
                and len(slot.tokens) > shared
            ):
                common = common_prefix(slot.tokens, known)
                if common > shared:
                    best, shared = index, common
        own = best in free and shared >= 0.8 * len(self.slots[best].tokens)
        target = best if own else min(free, key=lambda index: self.slots[index].used)
        if not own and shared:
            self.cache.copy(best, target, shared)
        slot = self.slots[target]
        slot.tokens, slot.busy = request.prompt[:shared], True
        slot.model = weakref.ref(request.model)
        request.slot, request.cached = target, shared
        self.tokens_cached += shared
        self.tokens_prompted += len(request.prompt)
        return True

    def _forward(
        self, model: PreTrainedModel, fresh: Sequence[Request], going: Sequence[Request]
    ) -> None:
        row: list[int] = []
        places: list[int] = []
        last: list[int] = []
        prefill = []
        for request in fresh:
            slot = self.slots[request.slot]
            start = len(slot.tokens)
            new = request.prompt[start:]
            prefill.append((request.slot, start, len(new)))
            row += new
            places += range(start, start + len(new))
            last.append(len(row) - 1)
            slot.tokens = slot.tokens + new
        decode = []
        for request in going:
            slot = self.slots[request.slot]
            decode.append((request.slot, len(slot.tokens)))
            places.append(len(slot.tokens))
            row.append(request.ids[-1])
            last.append(len(row) - 1)
            slot.tokens.append(request.ids[-1])
        self.tokens_computed += len(row)
        output = model(
            input_ids=torch.tensor([row]),
            position_ids=torch.tensor([places]),
            use_cache=False,
            logits_to_keep=torch.tensor(last),
            batch=Batch(slots=self.cache, prefill=tuple(prefill), decode=tuple(decode)),
        )
        requests, logits = [*fresh, *going], output.logits[0]
        if len(logits) != len(last):  # a model that keeps them all
            logits = logits[last]
        chosen, logprobs, every = _sample(logits.float(), requests)
        for row_of, (request, token, logprob) in enumerate(
            zip(requests, chosen, logprobs, strict=True)
        ):
            if request.top:
                best = every[row_of].topk(request.top)
                candidates = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                request.likeliest.append(list(candidates))
            request.ids.append(token)
            request.logprobs.append(logprob)
            self.tokens_sampled += 1
            if token in request.stop_ids or (
                request.stop is not None and request.stop(request.ids)
            ):
                self._finish(request, "stop")
            elif len(request.ids) >= request.max_tokens:
                self._finish(request, "length")
            elif request.stream:
                request.notify(request)

    def _finish(self, request: Request, reason: str) -> None:
        slot = self.slots[request.slot]
        slot.busy, slot.used = False, time.monotonic()
        self.running.remove(request)
        request.finish_reason = reason
        request.notify(request)


def _sample(
    logits: torch.Tensor, requests: Sequence[Request]
) -> tuple[list[int], list[float], torch.Tensor]:
    """One token for each request, its log-probability under the sampling distribution, and that distribution, (B, V).

    logits is (B, V). A greedy request reports the unscaled distribution.
    """
    temperatures = torch.tensor([r.temperature if r.temperature > 0 else 1.0 for r in requests])
    logprobs = torch.log_softmax(logits / temperatures[:, None], -1)
    for number, request in enumerate(requests):
        if request.temperature > 0 and (request.top_p < 1 or request.top_k > 0):
            logprobs[number] = _truncate(logprobs[number], request.top_p, request.top_k)
    cumulative = logprobs.double().exp().cumsum(-1)
    draws = torch.tensor([[r.rng.random()] for r in requests], dtype=torch.float64)
    drawn = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).squeeze(1)
    greedy = torch.tensor([r.temperature == 0 for r in requests])
    tokens = torch.where(greedy, logprobs.argmax(-1), drawn.clamp(max=logits.size(1) - 1))
    picked = logprobs.gather(1, tokens[:, None]).squeeze(1)
    return tokens.tolist(), picked.tolist(), logprobs


def _truncate(logprobs: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    order = logprobs.argsort(descending=True)
    before = logprobs[order].exp().cumsum(0) - logprobs[order].exp()
    keep = before < top_p
    if top_k > 0:
        keep[top_k:] = False
    left = torch.full_like(logprobs, float("-inf"))
    left[order[keep]] = logprobs[order[keep]]
    return torch.log_softmax(left, -1)
