"""Shape of the code: short modules and functions, few parameters, names that a reader knows, and no state of a module that
nobody lists.

python scripts/check_shape.py
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = {"stateset_agents", "graphs", "nodes", "tools", "rewards", "trainers", "server"}
MODULE_LINES, FUNCTION_LINES, PARAMETERS, LOOSE_MODULES = 400, 80, 8, 14

COMMANDS = "stateset_agents/cli/"
"""Parameters of a command are its options: they are not counted."""

EXCEPTIONS = {
    # The public call that embeds a graph: every parameter after the model is an optional keyword, as of LangGraph's `compile`.
    "graphs/build.py:build_graph": "parameters",
    # The public call that plays an episode: what follows the sampling are optional keywords.
    "graphs/rollout.py:play_episode": "parameters",
}

PRIVATE = {"told", "found", "asked", "held", "said", "one", "well", "away", "bent", "heat"}
"""Words that say nothing of what a variable holds."""
DIALOGUE = ("tools/wording/", "tools/scenarios/")
"""Where a customer's sentences are made, `said` and `one` are words of theirs."""
SENTENCES = re.compile(r"so-manieth|how-manieth")

ARCHITECTURE = Path("docs/architecture.md")
"""Lists what modules hold, each as `package.module.name`."""
CONTAINERS = {
    "dict", "list", "set", "OrderedDict", "defaultdict", "deque", "Counter", "WeakSet", "WeakKeyDictionary", "WeakValueDictionary"
}  # fmt: skip

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
    listed_state = ARCHITECTURE.read_text()
    for path in paths:
        if path.suffix == ".py" and path.parts[0] in ROOMS:
            yield from check_state(path, listed_state)
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
            line = getattr(node, "lineno", 0)
            yield f"{path}:{line}: {name!r}: name what it holds (its kind or its role)."


def check_state(path: Path, listed: str) -> Iterator[str]:
    """Constants aside (their names are capitals), what a module holds has a bound and is listed."""
    module = ".".join(path.with_suffix("").parts)
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Name) or target.id.isupper() or target.id.startswith("__"):
            continue
        if _is_container(node.value) and f"`{module}.{target.id}`" not in listed:
            yield f"{path}:{node.lineno}: {target.id}: give it to an object, or a bound and a line in {ARCHITECTURE}."
    for function in ast.walk(tree):
        if isinstance(function, Function) and function.args.args:
            for decorator in function.decorator_list:
                if ast.unparse(decorator) in ("functools.cache", "cache"):
                    yield f"{path}:{function.lineno}: {function.name}: lru_cache with a bound."


def _is_container(value: ast.AST | None) -> bool:
    """Whether a value is made empty, to be filled later."""
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List):
        return not value.elts
    name = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    return name.rpartition(".")[2] in CONTAINERS


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
