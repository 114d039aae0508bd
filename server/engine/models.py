"""The engine's models: one base in fp32, and a merged copy for each adapter."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from stateset_agents.errors import BadInput
from stateset_agents.policy.rendering import Renderer, renderer_of
from stateset_agents.policy.weight_files import checked_config
from stateset_agents.server.engine import attention
from stateset_agents.server.engine.exactness import REPLACED, why_not_exact


def load_base(path: str) -> tuple[PreTrainedModel, Renderer]:
    """A causal language model in fp32 and its renderer. Raises BadInput if it cannot be loaded, rendered for, or answered for
    exactly."""
    config = checked_config(path)
    renderer = renderer_of(path)
    _ = renderer.reader
    reason: str | None = REPLACED
    model = None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=attention.NAME
        )
    except (ValueError, KeyError) as error:
        if attention.NAME not in str(error) and "attention" not in str(error).lower():
            raise _not_loaded(path, error) from None
    except (OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise _not_loaded(path, error) from None
    if model is not None:
        model.eval()
        reason = why_not_exact(model)
    if reason is not None:
        raise BadInput(
            f"Expected a model that the embedded engine answers for exactly, found {_kind(config)}: {reason}. "
            "Serve it with vLLM (--engine vllm, or --base-url)."
        )
    assert model is not None
    return model, renderer


def _kind(config: Any) -> str:
    return str((config.architectures or [config.model_type])[0])


def _not_loaded(path: str, error: Exception) -> BadInput:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return BadInput(f"Expected a model's weights at {path!r}, found: {lines[0][:300]}")


def with_adapter(base: PreTrainedModel, path: str) -> PreTrainedModel:
    """A model with the adapter's weights added in fp32. It shares every untouched tensor with `base`. A folder with a whole
    model (from training all weights) is loaded as it is."""
    if not (Path(path) / "adapter_config.json").is_file():
        if (Path(path) / "model.safetensors").is_file():
            return _whole(base, path)
        raise BadInput(f"Expected a PEFT adapter in {path!r}, found no adapter_config.json.")
    # New Parameter objects over the same storage: merging rebinds `.data` and leaves the base as it is.
    shared: dict[int, Any] = {
        id(p): torch.nn.Parameter(p.data, requires_grad=False) for p in base.parameters()
    }
    twin = copy.deepcopy(base, shared)
    try:
        merged = PeftModel.from_pretrained(twin, path).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadInput(
            f"Expected an adapter for {base.config.name_or_path!r} in {path!r}, found one that does "
            f"not fit: {str(error).splitlines()[0][:200]}"
        ) from None
    merged.eval()
    return merged


def _whole(base: PreTrainedModel, path: str) -> PreTrainedModel:
    """A whole model of the same architecture, which the slots need."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention.NAME
    )
    shapes = [tuple(p.shape) for p in model.parameters()]
    if shapes != [tuple(p.shape) for p in base.parameters()]:
        raise BadInput(
            f"Expected weights for {base.config.name_or_path!r} in {path!r}, found a model of other shapes."
        )
    model.eval()
    return model
