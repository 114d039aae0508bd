"""The pictures in the docs are those of the compiled graphs, and `langgraph.json` names graphs that are there."""

import importlib
import json
import re
from typing import Any

import pytest

from stateset_agents.graphs import agent, conversation, orchestrator
from stateset_agents.graphs.domains import DOMAINS
from tests import ROOT

PAGE = ROOT / "docs" / "graphs.md"
PICTURED = [("orchestrator", orchestrator.build()), ("conversation", conversation.build())]


@pytest.mark.parametrize(
    ("section", "graph"), [*(("Agents", agent.build(d)) for d in DOMAINS.values()), *PICTURED]
)
def test_the_picture_is_the_graphs_own(section: str, graph: Any) -> None:
    (text,) = re.findall(
        rf"^## {section}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (picture,) = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert picture.strip() == graph.get_graph().draw_mermaid().strip()


def test_every_agent_is_in_the_table_and_can_be_told_its_rules() -> None:
    for name, domain in DOMAINS.items():
        assert f"| `{name}` | {domain.role} |" in PAGE.read_text()
        assert len(domain.prompt()) > 40
    assert "Delivered items can be refunded for 30 days." in DOMAINS["returns"].prompt()


def test_langgraph_json_names_graphs_that_compile() -> None:
    named = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
    assert set(named) == {*DOMAINS, "orchestrator"}
    for name, place in named.items():
        module, attribute = place.split(":")
        graph = getattr(importlib.import_module(module), attribute)
        assert graph.name == name
        assert graph.checkpointer is None
