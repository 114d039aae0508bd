"""The model that is trained: a base with one LoRA or several, or all of its weights, always with float32 ones to move.

A bfloat16 weight of 1 cannot change by 5e-6, since the next number is 0.004 away. So trained weights are always float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from stateset_agents.errors import BadInput
from stateset_agents.trainers.config import DEFAULT_ADAPTER, Precision, TrainConfig
from stateset_agents.trainers.packing import tree_attention
from stateset_agents.trainers.packing.batches import Batch
from stateset_agents.trainers.packing.chunked_logprobs import logprobs_of
from stateset_agents.trainers.packing.tree_attention import Tree
from stateset_agents.trainers.packing.trie import fold

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""The dtypes of frozen weights and of the computation."""
Model: TypeAlias = "PeftModel | PreTrainedModel"


def load_model(
    path: str,
    config: TrainConfig | None = None,
    *,
    adapters: Mapping[str, Path | None] | None = None,
    device: str = "cpu",
) -> Model:
    """The base at `path` with LoRAs on every linear layer, fresh or saved (`adapters`: where, by name), or all of it trained
    (`config.full`).

    Trained weights are float32; frozen ones have `config.precision`. Raises BadInput if a saved adapter does not fit.
    """
    config = config or TrainConfig()
    dtype = torch.float32 if config.full else DTYPES[config.precision]
    try:
        base = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=tree_attention.NAME
        )
    except ValueError:  # a model whose attention cannot be replaced
        base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    base.to(device)
    if config.full:
        return base
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model: Any = None
    for name, saved in (adapters or {DEFAULT_ADAPTER: None}).items():
        if saved is not None:
            try:
                if model is None:
                    model = PeftModel.from_pretrained(base, saved, name, is_trainable=True)
                else:
                    model.load_adapter(saved, name, is_trainable=True)
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise BadInput(
                    f"Expected an adapter of {path!r} in {str(saved)!r}, found one that does not fit: "
                    f"{str(error).splitlines()[0][:200]}"
                ) from None
            continue
        torch.manual_seed(config.seed)
        if model is None:
            model = get_peft_model(base, lora, adapter_name=name)
        else:
            model.add_adapter(name, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    assert isinstance(model, PeftModel)
    return model


def base_of(model: Model) -> PreTrainedModel:
    """The transformers model itself, with its LoRAs."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def logprobs(
    model: Model, batch: Batch, *, temperature: float, shared: bool, precision: Precision = "fp32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) log-probabilities of the sampled tokens at the temperature they were sampled at, and entropies in nats.

    `shared`: each prefix goes through the model once; otherwise each row separately.
    """
    base = base_of(model)
    device = batch.ids.device.type
    with torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "fp32"):
        hidden_PH = (_through_the_tree if shared else _row_by_row)(base, batch)
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
    where = torch.full((batch.ids.size(1), 2), -1, device=batch.ids.device)
    for number, path in enumerate(batch.paths):
        fresh = where[path, 0] < 0
        where[path[fresh], 0] = number
        where[path[fresh], 1] = torch.arange(len(path), device=path.device)[fresh]
    read, order = [], []
    needed = where[batch.nodes_P]
    for number, path in enumerate(batch.paths):
        mine = (needed[:, 0] == number).nonzero()[:, 0]
        if len(mine):
            row = base.base_model(input_ids=batch.ids[:, path], use_cache=False).last_hidden_state
            read.append(row[0].index_select(0, needed[mine, 1]))
            order.append(mine)
    return torch.cat(read)[torch.cat(order).argsort()]


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


_ROWS = ((5, 1, 4, 2, 3), (5, 1, 4, 2, 6, 7), (5, 1, 7, 7, 2, 5, 3), (6, 2))


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
    trie = fold(_ROWS)
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
        for number in range(len(_ROWS)):
            nodes = trie.nodes(number)
            row = base.base_model(input_ids=ids[:, nodes], use_cache=False).last_hidden_state[0]
            scale = float(row.abs().max()) or 1.0
            worst = max(worst, float((shared[nodes] - row).abs().max()) / scale)
    except (TypeError, RuntimeError, ValueError) as error:
        return f"it cannot read a trie: {str(error).splitlines()[0][:120]}"
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
