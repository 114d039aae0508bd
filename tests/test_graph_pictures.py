"""The pictures in the docs are those of the compiled graphs."""

import re
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.graphs import conversation, service

PAGE = Path(__file__).parents[1] / "docs" / "graphs.md"


@pytest.mark.parametrize(
    ("name", "graph"), [("service", service.build()), ("conversation", conversation.build())]
)
def test_the_picture_is_the_graphs_own(name: str, graph: Any) -> None:
    (section,) = re.findall(
        rf"^## {name}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (picture,) = re.findall(r"```mermaid\n(.*?)```", section, re.DOTALL)
    assert picture.strip() == graph.get_graph().draw_mermaid().strip()
