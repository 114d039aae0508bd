"""Files that are written whole or not at all."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content: `text` is written to a new file, which is then renamed, so that a killed process leaves the old
    or the new content."""
    beside = path.with_name(f"{path.name}.writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
