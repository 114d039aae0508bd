"""Our plugin for vLLM, which loads it into each of its processes; no file of vLLM is changed. It runs in vLLM's environment,
which does not have this package, so it imports nothing of it."""

import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import torch

OPS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""vLLM's CPU operations that apply adapters; others are built from these."""


def register() -> None:
    """Called by vLLM in each of its processes, before it makes a model."""
    mend_tokens_without_adapter()


def mend_tokens_without_adapter() -> None:
    """Keep adapters off the tokens of the base model, on a CPU.

    vLLM marks those with the index -1, and its operations for the CPU take that as the last slot: once every slot was used, the
    base model answers with an adapter on it (vLLM's pull requests 48421 and 49656). Operations without the defect are left as
    they are.
    """
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops

    if not touches_tokens_without(lora_ops.bgmv_expand):
        return
    from vllm.lora.punica_wrapper import punica_cpu

    for name in OPS:
        mended = where_there_is_one(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, mended)


def touches_tokens_without(expand: Callable[..., None]) -> bool:
    """Whether a token without an adapter is changed by one."""
    output = torch.zeros(1, 1)
    expand(torch.ones(1, 1), torch.ones(1, 1, 1, 1), output, torch.tensor([-1]))
    return bool(output.any())


def where_there_is_one(op: Callable[..., None]) -> Callable[..., None]:
    """`op` only for tokens with an adapter; the other outputs are unchanged, or zero if they would be overwritten."""

    def mended(
        inputs: Any, weights: Any, output: Any, indices: Any, *more: Any, **named: Any
    ) -> None:
        rows = (indices >= 0).nonzero().squeeze(1)
        if len(rows) == len(indices):
            op(inputs, weights, output, indices, *more, **named)
        elif len(rows):
            part = output[rows]
            op(inputs[rows], weights, part, indices[rows], *more, **named)
            output[rows] = part

    return mended


class Weights:
    """Further methods of vLLM's workers (`--worker-extension-cls`)."""

    model_runner: Any

    def put_in_place(self, weights: str) -> None:
        """Replace the model's weights by those in a folder of transformers."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        self.model_runner.reload_weights(weights_path=weights)
        if not current_platform.is_cpu():
            return
        for module in self.model_runner.get_model().modules():
            # One that shares the embedding's weights keeps its packed copy of the old ones.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


OPEN = ("/v1/", "/health", "/ping", "/version", "/load", "/metrics", "/tokenize", "/detokenize")
"""Paths that vLLM answers to everybody, or protects with its own key."""
KEY, HEADER = "STATESET_WEIGHTS_KEY", b"x-weights-key"


class Guard:
    """Requires a key for everything else that vLLM answers in development mode (`--middleware`): its own key protects only
    `/v1`, and endpoints for weights and workers would be open to every process and web page on the machine."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.digest = hashlib.sha256(os.environ[KEY].encode()).digest()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith(OPEN) or self.knows(scope):
            await self.app(scope, receive, send)
            return
        body = b'{"error": {"message": "Expected the key of this server\'s weights, found none or another."}}'
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def knows(self, scope: Any) -> bool:
        given = dict(scope["headers"]).get(HEADER, b"")
        return secrets.compare_digest(hashlib.sha256(given).digest(), self.digest)
