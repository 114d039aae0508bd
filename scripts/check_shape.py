"""Shape of the code: no module over 400 lines, no function over 80 or with more than 8 parameters, and no private words as names.

python scripts/check_shape.py
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES, FUNCTION_LINES, PARAMETERS, LOOSE_MODULES = 400, 80, 8, 14

COMMANDS = "stateset_agents/cli/"
"""Parameters of a command are its options: they are not counted."""

EXCEPTIONS = {
    # The public call that embeds a graph: every parameter after the model is an optional keyword, as of LangGraph's `compile`.
    "graphs/build.py:build_graph": "parameters",
}

PRIVATE = {"told", "found", "asked", "held", "said", "one", "well", "away", "bent", "heat"}
"""Words that say nothing of what a variable holds."""
DIALOGUE = ("tools/wording/", "tools/scenarios/")
"""Where a customer's sentences are made, `said` and `one` are words of theirs."""
SENTENCES = re.compile(r"so-manieth|how-manieth")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    problems = list(check())
    print("\n".join(problems) or "Shape: kept.")
    sys.exit(bool(problems))


def check() -> Iterator[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    paths = [Path(name) for name in listed.stdout.splitlines() if Path(name).is_file()]
    loose = [
        path for path in paths if path.suffix == ".py" and path.parent.name == "stateset_agents"
    ]
    if len(loose) > LOOSE_MODULES:
        yield f"stateset_agents/: {len(loose)} loose modules, {LOOSE_MODULES} at most: move one into a package."
    for path in paths:
        if path.suffix in (".py", ".md", ".sh", ".yaml") and path != Path(__file__).relative_to(
            Path.cwd()
        ):
            text = path.read_text()
            for match in SENTENCES.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                yield f"{path}:{line}: {match.group()!r}: say 'every n-th', 'the number of'."
        if path.suffix == ".py":
            yield from check_module(str(path), path.read_text())


def check_module(path: str, text: str) -> Iterator[str]:
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines, {MODULE_LINES} at most: split it by what it does."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield from check_function(path, node)
        name = _name(node)
        if name.lower().strip("_") in PRIVATE and not path.startswith(DIALOGUE):
            yield f"{path}:{node.lineno}: {name!r}: name what it holds (its kind or its role)."  # type: ignore[attr-defined]


def check_function(path: str, node: Function) -> Iterator[str]:
    exception = EXCEPTIONS.get(f"{path}:{node.name}")
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > FUNCTION_LINES and exception != "lines":
        yield f"{path}:{node.lineno}: {node.name} has {lines} lines, {FUNCTION_LINES} at most."
    parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
    if count > PARAMETERS and exception != "parameters" and not path.startswith(COMMANDS):
        yield f"{path}:{node.lineno}: {node.name} has {count} parameters, {PARAMETERS} at most: one settings object."


def _name(node: ast.AST) -> str:
    """The name that a node gives to something."""
    if isinstance(node, ast.Name):
        return node.id if isinstance(node.ctx, ast.Store) else ""
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Attribute):
        return node.attr if isinstance(node.ctx, ast.Store) else ""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return "" if node.name.startswith("test_") else node.name
    if isinstance(node, ast.keyword):
        return node.arg or ""
    return ""


if __name__ == "__main__":
    main()
