"""Whole models in place of one another: vLLM holds one at a time, and names adapters alone.

New weights replace the old ones, and an adapter that adds nothing is served under their version's name. So a server that was restarted,
or holds another version, does not know the name, and what it answers says what it was sampled with.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput


@dataclass(frozen=True)
class InPlace:
    """What a pool needs for it."""

    nothing: Path
    """An adapter that adds nothing."""
    key: str
    """What the servers ask for before they let anybody near their weights."""


RANK = 8
"""The smallest that vLLM has room for."""


def read_header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says of its tensors (`dtype`, `shape`, `data_offsets` by name); None where it is not whole."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if length < size else {}
        except ValueError:
            return None
    header.pop("__metadata__", None)
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    return header if ends and size == 8 + length + max(ends) else None


def adapter_of_nothing(weights: Path, folder: Path) -> Path:
    """Make `folder` an adapter that adds zero to one layer of the model at `weights`. Raises BadInput where it has none that is known.

    A layer of attention, where there is one: experts take adapters in a form of their own.
    """
    files = sorted(weights.glob("model*.safetensors"))
    shapes = {
        name: tensor["shape"]
        for file in files
        for name, tensor in (read_header(file) or {}).items()
    }
    fitting = [one for one in shapes if one.endswith("_proj.weight") and ".experts." not in one]
    name = min(fitting, key=lambda one: ("attn" not in one, one), default=None)
    if name is None:
        raise BadInput(
            f"Expected layers that an adapter fits on (…_proj) in {str(weights)!r}, found none; train adapters, or give --engine embedded."
        )
    layer = name.removesuffix(".weight")
    outputs, inputs = shapes[name]
    parts = {"lora_A": [RANK, inputs], "lora_B": [outputs, RANK]}
    header, end = dict[str, Any](), 0
    for part, shape in parts.items():
        begin, end = end, end + 4 * prod(shape)
        header[f"base_model.model.{layer}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}  # fmt: skip
    said = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": [layer.rpartition(".")[2]],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    told = json.dumps(header).encode()
    told = told.ljust(-(-len(told) // 8) * 8)
    data = len(told).to_bytes(8, "little") + told + bytes(end)
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder.resolve()
