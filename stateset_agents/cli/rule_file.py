"""A rule file named on the command line."""

from pathlib import Path
from typing import Any


def rules_from(file: Path | None) -> Any:
    if file is None:
        return None
    from stateset_agents.tools.rules import parse_rules
    from stateset_agents.tools.toolset import ALL_TOOLS

    names = [tool.name for tool in ALL_TOOLS]
    return parse_rules(file.read_text(encoding="utf-8"), where=str(file), tools=names)
