"""A file is replaced whole, or stays as it was."""

from pathlib import Path

import pytest

from stateset_agents.files import replace_text, replacing


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    replace_text(file, "old")
    replace_text(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_breaks_off_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    replace_text(file, "old")

    def breaks_off() -> None:
        with replacing(file) as beside:
            beside.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks_off()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
