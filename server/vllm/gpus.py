"""Which GPUs each server gets, and which the trainer keeps."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from stateset_agents.errors import BadInput

BESIDE_TRAINING = 0.45
"""vLLM's share of the memory of one GPU that the trainer also uses."""


@dataclass(frozen=True)
class Share:
    """A server's part of the GPUs."""

    devices: str | None = None
    """As in CUDA_VISIBLE_DEVICES; default: all."""
    memory: float | None = None
    """Share of each GPU's memory; default: vLLM's."""


def gpus() -> list[str]:
    """The GPUs that may be used, by the names that CUDA_VISIBLE_DEVICES takes; none without a driver."""
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        query = [driver, "--query-gpu=index", "--format=csv,noheader"]
        visible = ",".join(
            subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        )
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def share_out(devices: list[str], replicas: int, *, training: bool) -> list[Share]:
    """A part of the GPUs for each server. A trainer keeps the first GPU, or a part of the memory of a single GPU. Raises
    BadInput for more servers than GPUs: two that start on one GPU would count each other's memory."""
    if not devices or (replicas == 1 and not training):
        return [Share()] * replicas
    own = devices[1:] if training and len(devices) > 1 else devices
    if replicas > len(own):
        raise BadInput(
            f"--replicas: expected a GPU for each server{', and one for the trainer' if training else ''}, found {replicas} servers and "
            f"{len(devices)} of them."
        )
    each = len(own) // replicas
    memory = BESIDE_TRAINING if training and len(devices) == 1 else None
    return [Share(",".join(own[n * each : (n + 1) * each]), memory) for n in range(replicas)]
