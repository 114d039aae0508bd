"""Attention over cached slots: sequences of any length side by side in one row, without padding.

row       [ a a a a | b | c ]        a: four new tokens (prefill), b and c: one each (decode)
slot of b [ b b b b b b ]            what was computed for b before, plus the new token

A model's own windows, soft caps and sinks are applied. What it asks for beside that is refused, never left out.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "stateset_slots"
HARMLESS = frozenset({
    "dropout", "position_ids", "position_embeddings", "use_cache", "cache_position", "output_attentions", "is_causal",
    "output_hidden_states", "return_dict", "past_key_values", "cache", "num_items_in_batch", "output_router_logits",
})  # fmt: skip
"""What models hand to their attention that changes nothing here."""


class UnknownAttention(TypeError):
    """A model's attention asks for what is not built."""


class Slots:
    """Keys and values of `count` sequences of up to `length` tokens, for every layer; a layer's are made when it is first used."""

    def __init__(self, count: int, length: int) -> None:
        self.count, self.length = count, length
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, (count, KV, length, D)."""
        known = self._layers.get(layer)
        if known is None:
            known = self._layers[layer] = (
                key.new_empty(self.count, key.size(1), self.length, key.size(3)),
                value.new_empty(self.count, value.size(1), self.length, value.size(3)),
            )
        return known

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of `source` into `target`."""
        for pools in self._layers.values():
            for pool in pools:
                pool[target, :, :length] = pool[source, :, :length]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Which slots the new tokens of one forward pass belong to: prefills first, then decodes."""

    slots: Slots
    prefill: tuple[tuple[int, int, int], ...]
    """(slot, tokens already there, new tokens) of each sequence with several new tokens."""
    decode: tuple[tuple[int, int], ...]
    """(slot, tokens already there) of each sequence with one new token."""
    windows: dict[int, int | None] = field(default_factory=dict)
    """The window of each layer that was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a layer attends."""

    scale: float | None
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    """(H,): a logit beside the keys', which takes its share of the attention and gives nothing."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    batch: Batch | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, H, N, D), key and value (1, KV, N, D) of the new tokens -> (1, N, H, D). Raises UnknownAttention."""
    if batch is None:
        raise UnknownAttention("its layers do not pass on to their attention what they are given")
    kind = _Kind(
        scale=scaling,
        window=options.pop("sliding_window", None),
        softcap=options.pop("softcap", None),
        sinks=options.pop("s_aux", None),
    )
    strange = [
        n for n, v in options.items() if n not in HARMLESS and v is not None and v is not False
    ]
    if strange or attention_mask is not None:
        raise UnknownAttention(
            f"its attention takes {strange[0] if strange else 'a mask of its own'}"
        )
    layer = module.layer_idx
    assert isinstance(layer, int)
    batch.windows[layer] = kind.window
    keys, values = batch.slots.of(layer, key, value)
    out, at = [], 0
    for slot, start, new in batch.prefill:
        end = start + new
        keys[slot, :, start:end] = key[0, :, at : at + new]
        values[slot, :, start:end] = value[0, :, at : at + new]
        first = _first(start, kind.window)
        seen = (keys[slot : slot + 1, :, first:end], values[slot : slot + 1, :, first:end])
        out.append(_attended(query[:, :, at : at + new], *seen, kind))
        at += new
    if batch.decode:
        rows = torch.tensor([slot for slot, _ in batch.decode])
        places = torch.tensor([start for _, start in batch.decode])
        keys[rows, :, places] = key[0, :, at:].transpose(0, 1)
        values[rows, :, places] = value[0, :, at:].transpose(0, 1)
        for number, (slot, start) in enumerate(batch.decode):
            first = _first(start, kind.window)
            seen = (
                keys[slot : slot + 1, :, first : start + 1],
                values[slot : slot + 1, :, first : start + 1],
            )
            out.append(_attended(query[:, :, at + number : at + number + 1], *seen, kind))
    return torch.cat(out, 1).transpose(0, 1).unsqueeze(0), None


def _first(start: int, window: int | None) -> int:
    """The first position that the token at `start` sees."""
    return 0 if window is None else max(0, start - window + 1)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: _Kind
) -> torch.Tensor:
    """query (1, H, n, D) of the last n of the m tokens in key and value (1, KV, m, D) -> (H, n, D)."""
    heads, new, shared, there = query.size(1), query.size(2), key.size(1), key.size(2)
    group = heads // shared
    if new == 1:
        # The query heads that share a key head are rows of one small product: (KV, H / KV, D).
        grouped, sinks = query.view(1, shared, group, query.size(3)), None
        if kind.sinks is not None:
            sinks = kind.sinks.view(1, shared, group, 1)
        return _product(grouped, key, value, None, kind, sinks).reshape(heads, 1, value.size(3))
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    sinks = None if kind.sinks is None else kind.sinks.view(1, heads, 1, 1)
    causal = there == new and (kind.window is None or kind.window >= there)
    if causal and kind.softcap is None and sinks is None:
        whole = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=kind.scale)
        return whole[0]
    mask = torch.ones(new, there, dtype=torch.bool).tril_(there - new)
    if kind.window is not None:
        mask = mask.triu_(there - new - kind.window + 1)
    return _product(query, key, value, mask, kind, sinks)[0]


def _product(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, kind: _Kind,
    sinks: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    if kind.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=kind.scale)
    scale = query.size(-1) ** -0.5 if kind.scale is None else kind.scale
    scores = (query @ key.transpose(2, 3)).float() * scale
    if kind.softcap is not None:
        scores = torch.tanh(scores / kind.softcap) * kind.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., : key.size(2)].to(value.dtype)
    return weights @ value


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Each sequence attends to the tokens of its own slot."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
