"""Settings that fit a model, where none are given: each with its reason, which a dry run prints.

The library's own defaults are those of the bundled policy, and of nothing else.
"""

import json
import os
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.policy.litellm import PREFIX
from stateset_agents.policy.weight_files import checked_config, model_path
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.memory import tokens_at_once

RATES = ((20e6, 1e-3), (500e6, 5e-4), (4e9, 2e-4), (float("inf"), 1e-4))
"""Learning rates of LoRA by the number of weights. TRL's and PEFT's recipes take 1e-4 to 2e-4 for billions; small models bear more.
All weights are trained at a tenth of that (Schulman and others, "LoRA Without Regret", 2025)."""
TOKENS = 256
"""Tokens of a call: room for a tool call with some arguments, and for a few sentences."""
CONTEXT = 8192
"""Tokens of a conversation at most, if the model was made for so many: tools and a policy take some thousand."""


@dataclass(slots=True)
class Fitting:
    """The settings that were chosen, and why."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def choose(self, name: str, value: Any, reason: str) -> None:
        self.values[name] = value
        self.reasons.append(f"{name} {value}: {reason}")


def fitting(values: dict[str, Any], *, training: bool) -> Fitting:
    """Settings for the fields that `values` leaves out. Raises BadInput for a model that cannot be used, or does not fit."""
    made, model = Fitting(), str(values.get("model", "seed"))
    if model == "seed" or model.startswith(PREFIX):
        return made
    path = model_path(model)
    config = checked_config(path)
    text = config.get_text_config()
    count = weights_of(path, config)
    size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"
    if training and "learning_rate" not in values:
        rate = next(rate for most, rate in RATES if count < most)
        rate = rate / 10 if values.get("full") else rate
        kind = "all of" if values.get("full") else "LoRA on"
        made.choose("learning_rate", rate, f"{kind} {size} weights")
    if training:
        rows = min(TrainConfig().tokens_per_batch, tokens_at_once(config))
        if "tokens_per_batch" not in values and rows < TrainConfig().tokens_per_batch:
            made.choose("tokens_per_batch", rows, "the activations of a pass take some 3 GB")
    if "max_tokens" not in values:
        made.choose("max_tokens", TOKENS, "a tool call with its arguments, or a few sentences")
    positions = getattr(text, "max_position_embeddings", None)
    if "max_model_len" not in values and not values.get("base_url"):
        room = min(CONTEXT, positions or CONTEXT)
        made.choose(
            "max_model_len",
            room,
            f"tools and a conversation; the model was made for {positions or 'any number'}",
        )
    if not values.get("base_url"):
        _check_memory(count, training=training, size=size)
    return made


def weights_of(path: str, config: Any) -> int:
    """The number of a model's weights: from the heads of its files, or, on the hub, from its config."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    if files:
        return sum(map(_weights_in, files))
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _weights_in(file: Path) -> int:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        try:
            head = json.loads(opened.read(length))
        except ValueError:
            raise BadInput(
                f"--model: expected weights in {str(file)!r}, found a file that is cut off."
            ) from None
    return sum(prod(about["shape"]) for name, about in head.items() if name != "__metadata__")


def _check_memory(count: int, *, training: bool, size: str) -> None:
    """Raises BadInput where the weights alone are more than the machine's memory: float32, in the engine, and in the trainer."""
    if Path("/proc/driver/nvidia/version").exists():
        return
    copies = 2 if training else 1
    needed, there = 4 * count * copies, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.9 * there:
        also = ", in the engine and in the trainer" if training else ""
        raise BadInput(
            f"--model: expected a model that fits into {there / 1e9:.0f} GB of memory, found {size} weights, which take "
            f"{needed / 1e9:.0f} GB in float32{also}. Take a smaller one, or a server elsewhere (--base-url)."
        )
