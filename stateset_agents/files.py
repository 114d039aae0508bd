"""Files that are written whole or not at all."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Put `text` in the place of a file's content: written beside it, then renamed, so that a killed process leaves the old or
    the new."""
    beside = path.with_name(f"{path.name}.writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
