"""The picture of the layers is that of the contract, and every path that the page names is there."""

import re

from scripts.draw_layers import drawn
from tests import ROOT

PAGE = ROOT / "docs" / "architecture.md"


def test_the_picture_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert drawn(text, ROOT / "pyproject.toml") == text


def test_every_path_and_name_of_the_page_is_there() -> None:
    for path, name in re.findall(r"`((?:[\w.]+/)+\w+\.py)(?:: ([\w.]+))?`", PAGE.read_text()):
        text = (ROOT / path).read_text()
        if name:
            assert re.search(rf"(class|def) {name.rpartition('.')[2]}\b", text), (path, name)
