"""Whether the engine answers for a model as the model itself would: tried out before a token is sampled for anybody."""

import torch
from transformers import PreTrainedModel

from stateset_agents.server.engine import attention
from stateset_agents.server.engine.attention import Batch, Slots

BOUND = 1e-3
"""Nats by which a log-probability may differ; what float32 leaves is below 1e-4."""
SHORT = 24
"""Tokens of the tried sequences; more where a window is to be left behind."""
LONGEST = 600
"""Tokens that are tried at most, for a window."""
KINDS = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers in which every token keeps keys and values of its own."""
REPLACED = "its attention cannot be replaced"
Broken = (TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


def why_not_exact(model: PreTrainedModel) -> str | None:
    """Why the engine cannot answer for a model; None if it can. A prefill, a prefill in two parts and decodes, side by side and
    longer than the model's window, are compared with the model's own forward pass."""
    return differences(model)[1]


@torch.no_grad()
def differences(model: PreTrainedModel) -> tuple[float, str | None]:
    """The largest difference of a log-probability from the model's own, in nats, and why the engine cannot answer for it."""
    config = model.config.get_text_config()
    never = float("inf")
    if not model._supports_attention_backend:
        return never, REPLACED
    kinds = {kind for kind in getattr(config, "layer_types", None) or () if kind} - KINDS
    if kinds:
        return never, f"it has layers of the kind {', '.join(sorted(kinds))}"
    window = getattr(config, "sliding_window", None)
    ids = _tokens(model, min(LONGEST, max(SHORT, (window or 0) + 9)))
    windows: dict[int, int | None] = {}
    try:
        ours = _side_by_side(model, ids, windows)
    except Broken as error:
        return never, _words(error)
    unheard = _unheard(config, windows) if windows else REPLACED
    if unheard:
        return never, unheard
    model.set_attn_implementation("eager")
    try:
        own = [model(input_ids=row[None], use_cache=False).logits[0].float() for row in ids]
    except Broken as error:
        return never, f"its own forward pass fails: {_words(error)}"
    finally:
        model.set_attn_implementation(attention.NAME)
    worst = max(
        float((a.log_softmax(-1) - b.log_softmax(-1)).abs().max())
        for a, b in zip(ours, own, strict=True)
    )
    if not worst <= BOUND:  # nor NaN
        return worst, f"its log-probabilities would be off by {worst:.2g} nats"
    return worst, None


def _tokens(model: PreTrainedModel, length: int) -> list[torch.Tensor]:
    """Two sequences of the model's tokens."""
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(size, (n,), generator=generator) for n in (length, length - 3)]


def _side_by_side(
    model: PreTrainedModel, ids: list[torch.Tensor], windows: dict[int, int | None]
) -> list[torch.Tensor]:
    """Logits of both sequences: the first all but two tokens at once, the second in two parts, and the last two one by one."""
    slots = Slots(2, len(ids[0]))
    first, second = (len(row) for row in ids)
    half = second // 2
    steps = [
        (((0, 0, first - 2), (1, 0, half)), ()),
        (((1, half, second - 2 - half),), ((0, first - 2),)),
        ((), ((0, first - 1), (1, second - 2))),
        ((), ((1, second - 1),)),
    ]
    logits: list[list[torch.Tensor]] = [[], []]
    for prefill, decode in steps:
        spans = [*prefill, *((slot, start, 1) for slot, start in decode)]
        row = torch.cat([ids[slot][start : start + new] for slot, start, new in spans])
        places = torch.cat([torch.arange(start, start + new) for _, start, new in spans])
        batch = Batch(slots=slots, prefill=prefill, decode=decode, windows=windows)
        output = model(
            input_ids=row[None], position_ids=places[None], use_cache=False, batch=batch
        ).logits[0]
        for (slot, _, _), part in zip(spans, output.split([new for *_, new in spans]), strict=True):
            logits[slot].append(part.float())
    return [torch.cat(parts) for parts in logits]


def _unheard(config: object, windows: dict[int, int | None]) -> str | None:
    """A window of the config that a layer's attention was never told."""
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None
    kinds = getattr(config, "layer_types", None)
    for layer, heard in windows.items():
        slides = kinds[layer] == "sliding_attention" if kinds else True
        if slides and heard is None and window < getattr(config, "max_position_embeddings", 0):
            return f"layer {layer} slides over {window} tokens without saying so"
    return None


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (
        text[0][:160]
        if isinstance(error, attention.UnknownAttention)
        else (
            f"it cannot be read side by side ({type(error).__name__}: {text[0][:120] if text else ''})"
        )
    )
