"""Files that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new file to write, which takes the place of `path` at the end: a killed process leaves the old or the new content."""
    beside = path.with_name(f"{path.name}.writing")
    try:
        yield beside
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
