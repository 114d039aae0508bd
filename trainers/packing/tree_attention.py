"""Exact attention over a trie: each node attends to its ancestors and itself, and to nothing else.

segments  [A B]  [C]  [D]     A B: causal among themselves; C D against A B whole; C alone; D alone

On a CPU that is one product for a segment and one for all that lies below it, without masks, padding or copies, put together by
their log-sum-exp (as in ring attention, arXiv 2310.01889). On a GPU it is FlexAttention with the ancestor check as its mask.
Registered with transformers as `attn_implementation`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "stateset_tree"

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Segments = Sequence[tuple[int, int, int]]
"""(start, end, reach) of each segment: see `Trie.segments`."""


def blocks(segments: Segments) -> Iterator[tuple[slice, slice, bool]]:
    """(queries, keys, causal) of each product: every pair of a node and an ancestor, or itself, is in exactly one."""
    for start, end, reach in segments:
        yield slice(start, end), slice(start, end), True
        if reach > end:
            yield slice(end, reach), slice(start, end), False


class _Blocks(torch.autograd.Function):
    """query (1, H, N, D), key and value (1, KV, N, D) -> (1, H, N, D), all on the CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        scale: float | None,
    ) -> torch.Tensor:
        # (1, N, H, D) in memory, as the projections on both sides have it
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query.transpose(1, 2), dtype=wide).transpose(1, 2)
        total = query.new_full(query.shape[:3], -torch.inf, dtype=wide)
        seen = 0  # nodes that have attended to something already: all below what was done
        for queries, keys, causal in blocks(segments):
            part, weight = _flash(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=scale
            )
            part = part.to(wide)
            if queries.start >= seen:
                out[:, :, queries], total[:, :, queries] = part, weight
                seen = queries.stop
                continue
            both = torch.logaddexp(total[:, :, queries], weight)
            share = (weight - both).exp_()[..., None]
            # what was there + share * (new - what was there): the shares add up to one
            out[:, :, queries].lerp_(part, share)
            total[:, :, queries] = both
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        grad = grads[0]
        to_query, to_key, to_value = map(torch.zeros_like, (query, key, value))
        for queries, keys, causal in blocks(ctx.segments):
            # With the whole output and the whole log-sum-exp, each product's gradients are its share of all.
            parts = _flash_backward(
                grad[:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys],
                out[:, :, queries], total[:, :, queries], 0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            to_query[:, :, queries] += parts[0]
            to_key[:, :, keys] += parts[1]
            to_value[:, :, keys] += parts[2]
        return to_query, to_key, to_value, None, None


_blocks: Callable[..., torch.Tensor] = _Blocks.apply  # torch types it as nothing


def ancestor_mask(segments: Segments, nodes: int, device: torch.device | str) -> BlockMask:
    """FlexAttention's mask: nodes from a key to the reach of its segment attend to it."""
    reach = torch.empty(nodes, dtype=torch.int32)
    for start, end, to in segments:
        reach[start:end] = to
    reach = reach.to(device)

    def sees(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < reach[k])

    return create_block_mask(sees, None, None, nodes, nodes, device=str(device))


@functools.cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention, compiled once for every shape."""
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


class Tree:
    """A trie's segments for attention; the GPU's mask is made once for all layers."""

    def __init__(self, segments: Segments, nodes: int) -> None:
        self.segments, self.nodes = segments, nodes
        self._mask: BlockMask | None = None

    def mask(self, device: torch.device) -> BlockMask:
        if self._mask is None:
            self._mask = ancestor_mask(self.segments, self.nodes, device)
        return self._mask


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    tree: Tree | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, H, N, D), key and value (1, KV, N, D) over the N nodes -> (1, N, H, D). Raises TypeError for what is not built."""
    if tree is None:
        raise TypeError("its layers do not pass on to their attention what they are given")
    for name in ("sliding_window", "softcap", "s_aux"):
        if options.get(name) is not None:
            raise TypeError(f"its attention takes {name}")
    # Under autocast the rotary embedding gives float32 where the values are bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cpu":
        out = _blocks(query, key, value, tree.segments, scaling)
    else:
        out = _compiled()(
            query, key, value, block_mask=tree.mask(query.device), scale=scaling,
            enable_gqa=query.size(1) != key.size(1),
        )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The tree is the mask."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
