"""How a model reads a batch: each shared prefix once, or row by row; tried out against the model's own forward pass before a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stateset_agents.errors import BadInput
from stateset_agents.trainers.config import Precision
from stateset_agents.trainers.model import DTYPES, Model, base_of
from stateset_agents.trainers.packing import tree_attention
from stateset_agents.trainers.packing.batches import Batch
from stateset_agents.trainers.packing.chunked_logprobs import logprobs_of
from stateset_agents.trainers.packing.tree_attention import Tree
from stateset_agents.trainers.packing.trie import fold

ROWS = ((5, 1, 4, 2, 3), (5, 1, 4, 2, 6, 7), (5, 1, 7, 7, 2, 5, 3), (6, 2))
"""Tokens that are tried out; they share prefixes."""
Broken = (TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a model reads."""

    shared: bool
    """Each prefix goes through the model once; otherwise each row separately."""
    own_head: bool = False
    """Rows are read with the model's own logits, whose head does more than a product, a scale and a cap."""
    why: str | None = None
    """Why prefixes are not shared."""


def reading_of(model: Model) -> Reading:
    """Find out how a model can be read exactly, and set its attention and its dropout for that. Raises BadInput if it cannot."""
    base = base_of(model)
    without_dropout(base)
    why = why_not_shared(model)
    if why is not None:
        read_rows(model)
    training = base.training
    base.eval()
    try:
        own_head = why_not_our_head(base)
        _check_causal(base)
    finally:
        base.train(training)
    if own_head is None:
        return Reading(shared=why is None, why=why)
    read_rows(model)
    return Reading(shared=False, own_head=True, why=why or own_head)


def logprobs(
    model: Model,
    batch: Batch,
    *,
    temperature: float,
    reading: Reading,
    precision: Precision = "fp32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) log-probabilities of the sampled tokens at the temperature they were sampled at, and entropies in nats."""
    base = base_of(model)
    device = batch.ids.device.type
    with torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "fp32"):
        if reading.own_head:
            logprobs_P, entropy_P = _with_own_head(base, batch, temperature)
            return logprobs_P[batch.sources_BT], entropy_P[batch.sources_BT]
        hidden_PH = (_through_the_tree if reading.shared else _row_by_row)(base, batch)
        scale, cap = _output(base)
        logprobs_P, entropy_P = logprobs_of(
            hidden_PH, base.get_output_embeddings(), batch.tokens_P,
            scale=scale / temperature, cap=None if cap is None else cap / temperature,
        )  # fmt: skip
    return logprobs_P[batch.sources_BT], entropy_P[batch.sources_BT]


def _through_the_tree(base: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """(P, H) hidden states before each token to predict."""
    output = base.base_model(
        input_ids=batch.ids, position_ids=batch.depth, use_cache=False, tree=batch.tree
    )
    states: torch.Tensor = output.last_hidden_state[0]
    return states.index_select(0, batch.nodes_P)


def _row_by_row(base: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Like `_through_the_tree`, for models that need whole rows."""
    parts = []
    for path, pairs, places in _rows(batch):
        row = base.base_model(input_ids=batch.ids[:, path], use_cache=False).last_hidden_state
        parts.append((pairs, row[0].index_select(0, places)))
    return _in_order(parts)


def _with_own_head(
    base: PreTrainedModel, batch: Batch, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) log-probabilities and entropies from the model's own logits, a row at a time."""
    ours, entropies = [], []
    for path, pairs, places in _rows(batch):
        logits = base(input_ids=batch.ids[:, path], use_cache=False).logits[0]
        scaled = (logits.index_select(0, places).float() / temperature).log_softmax(-1)
        ours.append((pairs, scaled.gather(1, batch.tokens_P[pairs, None])[:, 0]))
        entropies.append((pairs, -(scaled.exp() * scaled).sum(-1).detach()))
    return _in_order(ours), _in_order(entropies)


def _rows(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each row's nodes, the pairs that are read from it, and the places in it before their tokens."""
    where = torch.full((batch.ids.size(1), 2), -1, device=batch.ids.device)
    for number, path in enumerate(batch.paths):
        fresh = where[path, 0] < 0
        where[path[fresh], 0] = number
        where[path[fresh], 1] = torch.arange(len(path), device=path.device)[fresh]
    needed, made = where[batch.nodes_P], []
    for number, path in enumerate(batch.paths):
        pairs = (needed[:, 0] == number).nonzero()[:, 0]
        if len(pairs):
            made.append((path, pairs, needed[pairs, 1]))
    return made


def _in_order(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    order = torch.cat([pairs for pairs, _ in parts]).argsort()
    return torch.cat([values for _, values in parts])[order]


def _output(base: PreTrainedModel) -> tuple[float, float | None]:
    """A model's scale and soft cap of its logits."""
    config = base.config.get_text_config()
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    scale: float | None = getattr(config, "logit_scale", None)
    if scale is None:
        scale = getattr(config, "lm_head_multiplier", None)
    divisor: float | None = getattr(config, "logits_scaling", None)
    if scale is None and divisor is not None:
        scale = 1 / divisor
    return (1.0 if scale is None else scale), cap


@torch.no_grad()
def why_not_our_head(base: PreTrainedModel) -> str | None:
    """Why the model's logits are not its head's product with a scale and a cap; None if they are. Its attention is set for rows."""
    attention = base.config._attn_implementation
    if attention == tree_attention.NAME:
        base.set_attn_implementation("eager")
    try:
        ids = torch.tensor([ROWS[2]], device=base.device)
        own = base(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        scale, cap = _output(base)
        tokens = torch.arange(len(ids[0]), device=base.device) % own.size(-1)
        ours, _ = logprobs_of(hidden, base.get_output_embeddings(), tokens, scale=scale, cap=cap)
    except Broken as error:
        return f"its head is its own ({type(error).__name__})"
    finally:
        base.set_attn_implementation(attention)
    apart = float((ours.float() - own.gather(1, tokens[:, None])[:, 0]).abs().max())
    return None if apart <= _allowed(base) else f"its head is its own: logits differ by {apart:.1e}"


@torch.no_grad()
def _check_causal(base: PreTrainedModel) -> None:
    """Raises BadInput for a model that reads the future, or whose training mode is not what was sampled from."""
    attention = base.config._attn_implementation
    if attention == tree_attention.NAME:
        base.set_attn_implementation("eager")
    ids = torch.tensor([ROWS[2]], device=base.device)

    def spoken(part: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = base(input_ids=part, use_cache=False).logits[0, :3]
        return made.float().log_softmax(-1)

    dropouts = [
        m for n, m in base.named_modules() if "lora_" in n and isinstance(m, torch.nn.Dropout)
    ]
    chances = [dropout.p for dropout in dropouts]
    try:
        whole, short = spoken(ids), spoken(ids[:, :4])
        for dropout in dropouts:  # LoRA's own is wanted
            dropout.p = 0.0
        base.train()
        training = spoken(ids)
    except Broken as error:
        raise BadInput(
            f"Expected a model that can be trained, found that {type(base).__name__} fails: {type(error).__name__}: {error}"
        ) from None
    finally:
        base.eval()
        for dropout, chance in zip(dropouts, chances, strict=True):
            dropout.p = chance
        base.set_attn_implementation(attention)
    if float((whole - short).abs().max()) > _allowed(base):
        raise BadInput(
            f"Expected a causal model, found that what {type(base).__name__} says of a token depends on those after it."
        )
    if float((whole - training).abs().max()) > _allowed(base):
        raise BadInput(
            f"Expected a model that says the same in training as when it answers, found that {type(base).__name__} does not "
            "(a dropout, or noise of its experts): it cannot be trained on what was sampled."
        )


def _allowed(base: PreTrainedModel) -> float:
    return 1e-3 if base.dtype == torch.float32 else 5e-2


def without_dropout(base: PreTrainedModel) -> None:
    """Turn off every dropout but LoRA's own, also those that are plain numbers in a module or a config: the gradient is of what was
    sampled from."""
    for name, module in base.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for field, value in vars(module).items():
            if isinstance(value, float) and _is_dropout(field):
                setattr(module, field, 0.0)
    config = base.config.get_text_config()
    for field, value in vars(config).items():
        if isinstance(value, float) and _is_dropout(field):
            setattr(config, field, 0.0)


def _is_dropout(field: str) -> bool:
    return "dropout" in field or field.endswith(("pdrop", "layerdrop"))


@torch.no_grad()
def why_not_shared(model: Model) -> str | None:
    """Why this model cannot share prefixes; None if it can. It is tested on a small trie against the model's result for
    separate rows, so that recurrent layers, convolutions, attention sinks and unknown layers are detected by their effect."""
    base = base_of(model)
    config = base.config.get_text_config()
    kinds = {kind for kind in getattr(config, "layer_types", None) or () if kind}
    if kinds - {"full_attention"}:
        return f"it has layers of the kind {', '.join(sorted(kinds - {'full_attention'}))}"
    window = getattr(config, "sliding_window", None)
    if window and getattr(
        config, "use_sliding_window", True
    ):  # wider than the rows tried out below
        return f"its attention slides over {window} tokens"
    if base.config._attn_implementation != tree_attention.NAME:
        return "its attention cannot be replaced"
    trie = fold(ROWS)
    ids = torch.tensor([trie.ids], device=base.device)
    training = base.training
    base.eval()
    try:
        shared = base.base_model(
            input_ids=ids,
            position_ids=torch.tensor([trie.depth], device=base.device),
            use_cache=False,
            tree=Tree(trie.segments, len(trie.ids)),
        ).last_hidden_state[0]
        base.set_attn_implementation("eager")
        worst = 0.0
        for number in range(len(ROWS)):
            nodes = trie.nodes(number)
            row = base.base_model(input_ids=ids[:, nodes], use_cache=False).last_hidden_state[0]
            scale = float(row.abs().max()) or 1.0
            worst = max(worst, float((shared[nodes] - row).abs().max()) / scale)
    except Broken as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        return f"it cannot read a trie: {words[0][:120]}"
    finally:
        base.set_attn_implementation(tree_attention.NAME)
        base.train(training)
    allowed = 1e-3 if base.dtype == torch.float32 else 5e-2
    if worst > allowed:
        return f"reading a trie changes its hidden states by {worst:.1e}"
    return None


def read_rows(model: Model) -> None:
    """Restore the original attention of a model that cannot share prefixes."""
    base = base_of(model)
    if base.config._attn_implementation == tree_attention.NAME:
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
