"""Which GPUs each server gets, and what a trainer beside them keeps."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from stateset_agents.errors import BadInput

BESIDE_TRAINING = 0.45
"""Of the memory of the one GPU that vLLM and the trainer share."""


@dataclass(frozen=True)
class Share:
    """What of the GPUs a server gets."""

    devices: str | None = None
    """As CUDA_VISIBLE_DEVICES has them; all of them without it."""
    memory: float | None = None
    """Of each one's; vLLM's own measure without it."""


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
    """A part of the GPUs for each server. A trainer keeps the first one, or, where there is one alone, a part of its memory. Raises
    BadInput where there are more servers than GPUs: two that start on one mistake each other's memory for their own."""
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
