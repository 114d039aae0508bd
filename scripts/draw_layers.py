"""The layers of the code as a mermaid picture, from the contract that import-linter enforces, into docs/architecture.md.

python scripts/draw_layers.py            # writes it; with --check it says whether it is up to date
"""

import sys
import tomllib
from pathlib import Path

BEGIN, END = "<!-- layers: begin -->", "<!-- layers: end -->"
PAGE = Path("docs/architecture.md")


def picture(project: Path) -> str:
    """Mermaid: a row for each layer, the highest first; imports point down."""
    contracts = tomllib.loads(project.read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    lines = ["```mermaid", "flowchart TB"]
    for number, layer in enumerate(layers):
        label = " · ".join(name.strip() for name in layer.split("|"))
        lines.append(f'    L{number}["{label}"]')
        if number:
            lines.append(f"    L{number - 1} --> L{number}")
    return "\n".join([*lines, "```"])


def drawn(text: str, project: Path = Path("pyproject.toml")) -> str:
    """The page with the picture of today's contract."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture(project)}\n{END}{after}"


def main() -> None:
    text = PAGE.read_text()
    if "--check" in sys.argv:
        if text != drawn(text):
            sys.exit(f"{PAGE}: the picture is old. Run: python scripts/draw_layers.py")
        return
    PAGE.write_text(drawn(text))


if __name__ == "__main__":
    main()
