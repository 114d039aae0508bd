"""Log-probabilities of given tokens from hidden states, without ever holding all logits.

P positions, H the hidden size, V the vocabulary: what is in memory at once is a few positions' V logits; the backward pass
computes them again.
"""

from collections.abc import Callable
from typing import Any

import torch

ELEMENTS = 2**24
"""Logits in memory at once: 64 MB in float32."""


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_PH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        tokens_P: torch.Tensor,
        scale: float,
        cap: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden_PH.dtype, torch.float32)
        logprobs, entropy, total = (
            torch.empty(len(tokens_P), dtype=wide, device=hidden_PH.device) for _ in range(3)
        )
        for rows in _chunks(len(tokens_P), len(weight_VH)):
            logits = _logits(hidden_PH[rows], weight_VH, bias_V, scale, cap)
            total[rows] = lse = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(1, tokens_P[rows, None])[:, 0] - lse
            share = (logits - lse[:, None]).exp_()
            entropy[rows] = lse - (share * logits).sum(-1)
        ctx.save_for_backward(hidden_PH, weight_VH, bias_V, tokens_P, total)
        ctx.scale, ctx.cap = scale, cap
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_PH, weight_VH, bias_V, tokens_P, total = ctx.saved_tensors
        wide = total.dtype
        to_hidden = torch.empty_like(hidden_PH)
        to_weight = torch.zeros_like(weight_VH, dtype=wide) if ctx.needs_input_grad[1] else None
        to_bias = (
            torch.zeros_like(bias_V, dtype=wide)
            if bias_V is not None and ctx.needs_input_grad[2]
            else None
        )
        for rows in _chunks(len(tokens_P), len(weight_VH)):
            logits = _logits(hidden_PH[rows], weight_VH, bias_V, ctx.scale, ctx.cap)
            slope = ctx.scale if ctx.cap is None else ctx.scale * (1 - (logits / ctx.cap) ** 2)
            back = (logits - total[rows, None]).exp_().mul_(-grads[0][rows, None])
            back.scatter_add_(1, tokens_P[rows, None], grads[0][rows, None])
            back *= slope
            to_hidden[rows] = (back.to(weight_VH.dtype) @ weight_VH).to(to_hidden.dtype)
            if to_weight is not None:
                to_weight.addmm_(back.T, hidden_PH[rows].to(wide))
            if to_bias is not None:
                to_bias += back.sum(0)
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight_VH.dtype),
            None if to_bias is None or bias_V is None else to_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _chunks(positions: int, vocabulary: int) -> list[slice]:
    size = max(1, ELEMENTS // vocabulary)
    return [slice(at, at + size) for at in range(0, positions, size)]


def _logits(
    hidden_PH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    scale: float,
    cap: float | None,
) -> torch.Tensor:
    """In float32 at least, multiplied by `scale` after an optional soft cap of the model's own (at most `cap` either way).

    `scale` here is the model's own scale over the temperature; where there is a cap, both are the cap's."""
    logits = torch.nn.functional.linear(hidden_PH.to(weight_VH.dtype), weight_VH, bias_V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


_logprobs: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _LogProbs.apply  # untyped in torch


def logprobs_of(
    hidden_PH: torch.Tensor,
    head: torch.nn.Linear,
    tokens_P: torch.Tensor,
    *,
    scale: float = 1.0,
    cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) log-probabilities of `tokens_P` under softmax(cap(scale * head(hidden))), and (P,) entropies in nats, without a
    gradient."""
    return _logprobs(hidden_PH, head.weight, head.bias, tokens_P, scale, cap)
