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
    except (ValueError, KeyError):  # a model whose attention cannot be replaced
        base = None
    if base is None or not base._supports_attention_backend:  # it would lose its mask
        base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    base.to(device)
    if config.full:
        return base
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        exclude_modules=_not_plain(base) or None,
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


MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""Models whose mixers PEFT wants no LoRA on `out_proj` of, since their kernels read its weight themselves."""


def _not_plain(base: PreTrainedModel) -> list[str]:
    """Names of layers that look linear and are more: routers that return several things, and what a kernel reads itself."""
    kernels = base.config.model_type in MAMBA
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (not _is_product(module) or (kernels and name.endswith(("out_proj", "conv1d"))))
    ]


@torch.no_grad()
def _is_product(layer: torch.nn.Linear) -> bool:
    """Whether a layer gives its input's product and nothing else."""
    if type(layer).forward is torch.nn.Linear.forward:
        return True
    given = layer.weight.new_zeros(1, 1, layer.in_features)
    try:
        made = layer(given)
    except (TypeError, RuntimeError, ValueError, IndexError):
        return False
    return isinstance(made, torch.Tensor) and made.shape == (1, 1, layer.out_features)


def base_of(model: Model) -> PreTrainedModel:
    """The transformers model itself, with its LoRAs."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base
