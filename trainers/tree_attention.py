"""Exact attention over a trie: each node attends to its ancestors and itself, one product a segment."""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from stateset_agents.trainers.trie import Tree

NAME = "stateset_tree"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, H, N, D), key and value (1, KV, N, D) over the N nodes -> (1, N, H, D)."""
    assert tree is not None
    group = query.size(1) // key.size(1)
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    keys = key.index_select(2, tree.gather).split_with_sizes(tree.keys, 2)
    values = value.index_select(2, tree.gather).split_with_sizes(tree.keys, 2)
    out = []
    for q, k, v in zip(query.split_with_sizes(tree.queries, 2), keys, values, strict=True):
        n, m = q.size(2), k.size(2)
        mask = None
        if 1 < n < m:
            mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril_(m - n)
        causal = n == m and n > 1
        out.append(
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling)
        )
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The tree is the mask."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
