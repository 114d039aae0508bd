"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

from tests import ROOT

ROOMS = ("stateset_agents", "graphs", "nodes", "tools", "rewards", "trainers", "server")
FILES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def _module(path: Path) -> str:
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[0] == "stateset_agents" else ("stateset_agents", *parts))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_docstrings(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(_module(path)))
    assert result.attempted
    assert not result.failed
