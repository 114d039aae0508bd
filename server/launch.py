"""Which engine a job's policy is served by, and what starts it. Refuses what that engine cannot do."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from stateset_agents.errors import BadInput
from stateset_agents.policy.weight_files import check_adapter, is_whole_model, model_path
from stateset_agents.server.options import ServerOptions, VllmOptions
from stateset_agents.server.supervisor import Launch
from stateset_agents.server.vllm import process as vllm
from stateset_agents.server.vllm.gpus import Share, gpus, share_out
from stateset_agents.settings import load_settings, policy_key

DEFAULT_SLOTS = 384
ALL_GPUS = Share()
SHAPE = ("architectures", "vocab_size", "hidden_size", "num_hidden_layers")
"""Fields of a model's config that its weights have to share."""


class EngineConfig(Protocol):
    """What a job says of its policy."""

    @property
    def model(self) -> str: ...
    @property
    def base_url(self) -> str | None: ...
    @property
    def engine(self) -> str | None: ...
    @property
    def replicas(self) -> int: ...
    @property
    def gpu_memory_utilization(self) -> float | None: ...
    @property
    def max_model_len(self) -> int | None: ...
    @property
    def tool_parser(self) -> str | None: ...
    @property
    def full(self) -> bool: ...
    @property
    def staleness(self) -> int: ...
    @property
    def nodes(self) -> tuple[str, ...]: ...
    @property
    def rank(self) -> int: ...
    @property
    def concurrency(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Which weights a server starts with, and what it has room for."""

    whole: Path | None = None
    """Weights in the place of the model's own."""
    later: Sequence[Path] = ()
    """Adapters that are loaded while it runs."""
    key: str = ""
    """Lets its holder put whole models in place while it runs."""
    share: Share = ALL_GPUS
    """Of the GPUs."""


def where(base_url: str | None, engine: str | None) -> dict[str, str]:
    """The fields of a config that say who serves: an engine that is named goes before servers that the settings name."""
    fields = {
        "base_url": base_url or (None if engine else load_settings().base_url),
        "engine": engine,
    }
    return {name: value for name, value in fields.items() if value is not None}


def engine_of(engine: str | None) -> str:
    """`embedded` or `vllm`: the one that is named, else the settings'; `auto` takes vLLM where it is installed."""
    settings = load_settings()
    engine = engine or settings.engine
    if engine == "auto":
        return "vllm" if vllm.installed(settings.vllm) else "embedded"
    return engine


def check_engine(config: EngineConfig, *, training: bool = False) -> None:
    """Raises BadInput where the engine of a config cannot be started, beside a trainer or alone."""
    if config.base_url is None:
        with tempfile.TemporaryDirectory() as folder:
            launch_of(config, Path(folder), ServerOptions(port=0))
        gpu_shares(config, training=training)


def slots_of(config: EngineConfig) -> int:
    """Sequences at once for a job: half as many again as there are episodes, so that forks and checks find room."""
    return config.concurrency + config.concurrency // 2 if config.concurrency else DEFAULT_SLOTS


def launch_of(
    config: EngineConfig, folder: Path, options: ServerOptions, weights: Weights | None = None
) -> Launch:
    """What starts the engine of a config. `folder` is for files that it needs. Raises BadInput where it cannot be started, or
    does not read a field that was set."""
    weights = weights or Weights()
    options = replace(options, key=policy_key())
    path = model_path(config.model)
    if engine_of(config.engine) == "vllm":
        _check_one_model(config, weights)
        settings = load_settings()
        own = VllmOptions(
            python=vllm.find_python(settings.vllm), folder=folder, rank=max([config.rank, *map(_rank, weights.later)]),
            max_model_len=config.max_model_len, tool_parser=config.tool_parser,
            gpu_memory_utilization=config.gpu_memory_utilization or weights.share.memory, devices=weights.share.devices,
            weights=weights.whole, weights_key=weights.key,
        )  # fmt: skip
        return vllm.launch(path, options, own)
    for option in ("gpu_memory_utilization", "max_model_len", "tool_parser"):
        if getattr(config, option) is not None:
            raise BadInput(
                f"--{option.replace('_', '-')}: used only by vLLM, and the engine is the embedded one; add --engine vllm."
            )
    from stateset_agents.server.engine import process as embedded

    return embedded.launch(path, options)


def gpu_shares(config: EngineConfig, *, training: bool = False) -> list[Share]:
    """The GPUs of each replica. Raises BadInput where there are too few."""
    if engine_of(config.engine) != "vllm":
        return [ALL_GPUS] * config.replicas
    return share_out(gpus(), config.replicas, training=training)


def _check_one_model(config: EngineConfig, weights: Weights) -> None:
    """vLLM holds many adapters, and one whole model. Raises BadInput where two would be needed at once."""
    if config.full and config.staleness:
        raise BadInput(
            "--staleness: expected 0 with --full on vLLM, which holds one whole model at a time; train adapters, or give --engine embedded."
        )
    if config.full and config.nodes:
        raise BadInput(
            "--node: expected none with --full on vLLM, which holds one whole model at a time, and the other nodes need the base; train "
            "adapters, or give --engine embedded."
        )
    if second := next((path for path in weights.later if is_whole_model(path)), None):
        raise BadInput(
            f"Expected an adapter beside the model on vLLM, which holds one whole model at a time, found the whole one {str(second)!r}. "
            "Give --engine embedded."
        )
    if weights.whole is not None and weights.later:
        raise BadInput(
            f"Expected no adapter beside the whole model {str(weights.whole)!r} on vLLM, found {str(weights.later[0])!r}: it is of the base, "
            "which vLLM would not hold. Give --engine embedded."
        )
    if weights.whole is not None:
        check_adapter(weights.whole)
        _check_same_model(model_path(config.model), weights.whole)


def _check_same_model(model: str, weights: Path) -> None:
    from transformers import AutoConfig

    base, other = (AutoConfig.from_pretrained(str(path)).to_dict() for path in (model, weights))
    for name in SHAPE:
        if base.get(name) != other.get(name):
            raise BadInput(
                f"Expected weights of {model!r} in {str(weights)!r}, found another {name}: {other.get(name)} in the place of "
                f"{base.get(name)}. Give the --model that was trained."
            )


def _rank(adapter: Path) -> int:
    """An adapter's; 0 of a whole model."""
    config = adapter / "adapter_config.json"
    return int(json.loads(config.read_text()).get("r", 0)) if config.is_file() else 0
