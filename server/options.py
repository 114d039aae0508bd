"""Options of a policy server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Options of any engine."""

    port: int
    host: str = "127.0.0.1"
    name: str = "policy"
    """Name of the model."""
    threads: int = 1
    """Threads on a CPU."""
    slots: int = 96
    """Sequences at once."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapters to load at the start, by name."""
    adapters_from: tuple[Path, ...] = ()
    """Folders below which the embedded engine loads adapters while it runs; default: the current one."""
    key: str = ""
    """The bearer key of clients; default: none."""
    extra: tuple[str, ...] = ()
    """Further options of vLLM."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """Options of vLLM."""

    python: Path
    """The Python that has vLLM."""
    folder: Path
    """Where its plugin and chat template are written."""
    rank: int = 16
    """The largest rank of an adapter."""
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    tool_parser: str | None = None
    """vLLM's tool-call parser; default: inferred from the chat template."""
    weights: Path | None = None
    """Other weights instead of the model's own."""
    weights_key: str = ""
    """With this key whole models can be replaced while it runs; empty: never."""
    devices: str | None = None
    """The visible GPUs, as in CUDA_VISIBLE_DEVICES; default: all."""
