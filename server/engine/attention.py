"""Attention over cached slots: sequences of any length side by side in one row, without padding.

row       [ a a a a | b | c ]        a: four new tokens (prefill), b and c: one each (decode)
slot of b [ b b b b b b ]            what was computed for b before, plus the new token
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

NAME = "stateset_slots"


class Slots:
    """Keys and values of `count` sequences of up to `length` tokens, for every layer."""

    def __init__(self, config: PretrainedConfig, count: int, length: int) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (count, heads, length, size)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.empty(shape) for _ in layers]
        self.values = [torch.empty(shape) for _ in layers]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of `source` into `target`."""
        for pool in (*self.keys, *self.values):
            pool[target, :, :length] = pool[source, :, :length]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Which slots the new tokens of one forward pass belong to: prefills first, then decodes."""

    slots: Slots
    prefill: tuple[tuple[int, int, int], ...]
    """(slot, tokens already there, new tokens) of each sequence with several new tokens."""
    decode: tuple[tuple[int, int], ...]
    """(slot, tokens already there) of each sequence with one new token."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    batch: Batch | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, H, N, D), key and value (1, KV, N, D) of the new tokens -> (1, N, H, D)."""
    assert batch is not None
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = batch.slots.keys[layer], batch.slots.values[layer]
    heads, size, shared = query.size(1), query.size(3), key.size(1)
    group = heads // shared
    out, at = [], 0
    for slot, start, new in batch.prefill:
        end = start + new
        keys[slot, :, start:end] = key[0, :, at : at + new]
        values[slot, :, start:end] = value[0, :, at : at + new]
        k, v = keys[slot : slot + 1, :, :end], values[slot : slot + 1, :, :end]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mask = None
        if start:
            mask = torch.ones(new, end, dtype=torch.bool).tril_(start)
        out.append(
            F.scaled_dot_product_attention(
                query[:, :, at : at + new], k, v, attn_mask=mask, is_causal=not start, scale=scaling
            )[0]
        )
        at += new
    if batch.decode:
        rows = torch.tensor([slot for slot, _ in batch.decode])
        places = torch.tensor([start for _, start in batch.decode])
        keys[rows, :, places] = key[0, :, at:].transpose(0, 1)
        values[rows, :, places] = value[0, :, at:].transpose(0, 1)
        # The query heads that share a key head are rows of one small product: (KV, H / KV, D).
        grouped = query[0, :, at:].transpose(0, 1).reshape(len(rows), shared, group, size)
        for number, (slot, start) in enumerate(batch.decode):
            seen = F.scaled_dot_product_attention(
                grouped[number : number + 1],
                keys[slot : slot + 1, :, : start + 1],
                values[slot : slot + 1, :, : start + 1],
                scale=scaling,
            )
            out.append(seen.view(heads, 1, size))
    return torch.cat(out, 1).transpose(0, 1).unsqueeze(0), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Each sequence attends to the tokens of its own slot."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
