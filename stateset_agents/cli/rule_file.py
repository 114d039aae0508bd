"""A rule file named on the command line."""

from pathlib import Path
from typing import Any


def rules_from(file: Path | None) -> Any:
    """The shop's rules, with a file's in the place of those of the same id, and its others after them."""
    from stateset_agents.tools.rules import parse_rules, replaced
    from stateset_agents.tools.toolset import SIGNATURES, shop_rules

    if file is None:
        return shop_rules()
    own = parse_rules(file.read_text(encoding="utf-8"), where=str(file), tools=SIGNATURES)
    return replaced(shop_rules(), own)
