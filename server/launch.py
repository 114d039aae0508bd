"""Which engine serves a job's policy, and how it is started. Refuses options that the engine does not have."""

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
"""Fields of a model's config in which its weights must agree."""


class EngineConfig(Protocol):
    """A job's settings of its policy's engine."""

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
    """The weights of a server, and its share of the GPUs."""

    whole: Path | None = None
    """A whole model instead of the base model's weights."""
    later: Sequence[Path] = ()
    """Adapters that will be loaded while it runs."""
    key: str = ""
    """The key with which whole models can be replaced while it runs."""
    share: Share = ALL_GPUS
    """Its share of the GPUs."""


def where(base_url: str | None, engine: str | None) -> dict[str, str]:
    """The config's `base_url` and `engine`: a named engine has priority over servers of the settings."""
    fields = {
        "base_url": base_url or (None if engine else load_settings().base_url),
        "engine": engine,
    }
    return {name: value for name, value in fields.items() if value is not None}


def engine_of(engine: str | None) -> str:
    """`embedded` or `vllm`: the named one, else the settings'; `auto` is vLLM if it is installed."""
    settings = load_settings()
    engine = engine or settings.engine
    if engine == "auto":
        return "vllm" if vllm.installed(settings.vllm) else "embedded"
    return engine


def check_engine(config: EngineConfig, *, training: bool = False) -> None:
    """Raises BadInput if a config's engine cannot be started, together with a trainer or without one."""
    if config.base_url is None:
        with tempfile.TemporaryDirectory() as folder:
            launch_of(config, Path(folder), ServerOptions(port=0))
        gpu_shares(config, training=training)


def slots_of(config: EngineConfig) -> int:
    """Sequences at once for a job: 1.5 times its concurrent episodes, so that forks and checks have room."""
    return config.concurrency + config.concurrency // 2 if config.concurrency else DEFAULT_SLOTS


def launch_of(
    config: EngineConfig, folder: Path, options: ServerOptions, weights: Weights | None = None
) -> Launch:
    """The launch of a config's engine. `folder` is for files that it needs. Raises BadInput if it cannot be started, or does
    not use an option that was set."""
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
    for option in ("gpu_memory_utilization", "tool_parser"):
        if getattr(config, option) is not None:
            raise BadInput(
                f"--{option.replace('_', '-')}: used only by vLLM, and the engine is the embedded one; add --engine vllm."
            )
    from stateset_agents.server.engine import process as embedded

    return embedded.launch(path, options, length=config.max_model_len)


def gpu_shares(config: EngineConfig, *, training: bool = False) -> list[Share]:
    """The GPUs of each replica. Raises BadInput if there are too few."""
    if engine_of(config.engine) != "vllm":
        return [ALL_GPUS] * config.replicas
    return share_out(gpus(), config.replicas, training=training)


def _check_one_model(config: EngineConfig, weights: Weights) -> None:
    """vLLM holds many adapters but one whole model. Raises BadInput if two would be needed at once."""
    if config.full and config.staleness:
        raise BadInput(
            "--staleness: expected 0 with --full on vLLM, which holds one whole model at a time; train adapters, or give --engine embedded."
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
    """The rank of an adapter; 0 for a whole model."""
    config = adapter / "adapter_config.json"
    return int(json.loads(config.read_text()).get("r", 0)) if config.is_file() else 0
