"""What a policy server is started with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Of any engine."""

    port: int
    host: str = "127.0.0.1"
    name: str = "policy"
    """The model's."""
    threads: int = 1
    """On a CPU."""
    slots: int = 96
    """Sequences at once."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapters that are loaded at the start, by their names."""
    key: str = ""
    """What clients have to send; nothing without it."""
    extra: tuple[str, ...] = ()
    """Further options of vLLM's own."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """Of vLLM."""

    python: Path
    """The one that has vLLM."""
    folder: Path
    """Where its plugin and its chat template are written."""
    rank: int = 16
    """The largest of an adapter."""
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    tool_parser: str | None = None
    """vLLM's parser of tool calls; default: inferred from the chat template."""
    weights: Path | None = None
    """Other weights of the model, in the place of its own."""
    weights_key: str = ""
    """Who has this key may put other weights in place while it runs; nobody where it is empty."""
    devices: str | None = None
    """The GPUs it sees, as CUDA_VISIBLE_DEVICES names them; default: all."""
