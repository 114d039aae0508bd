"""The command line. Every command imports what it needs when it runs, so that `version` is instant."""

import os
import sys
from pathlib import Path

from stateset_agents import __version__
from stateset_agents.cli import data, policies, rewards, traces, training
from stateset_agents.cli.help import CommandLine
from stateset_agents.errors import StatesetError

app = CommandLine(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Commerce agents as LangGraph graphs, trained on what really happened in the shop.",
)


def main() -> None:
    """Entry point. Errors raised on purpose are printed as one line, exit code 2."""
    try:
        app(standalone_mode=True)
    except StatesetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(2)


def version() -> None:
    """The versions of the packages, the device, and the engines that are installed."""
    from importlib import metadata, util

    def installed(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    cuda = "CUDA" if Path("/proc/driver/nvidia/version").exists() else "CPU"
    engines = ["embedded"] if util.find_spec("torch") and util.find_spec("fastapi") else []
    own_environment = Path(os.environ.get("STATESET_VLLM", ".venv-vllm")) / ".ready"
    engines += ["vllm"] if own_environment.is_file() or util.find_spec("vllm") else []
    rows = {
        "stateset-agents": __version__,
        "python": sys.version.split()[0],
        "torch": f"{installed('torch')} ({cuda})",
        **{name: installed(name) for name in ("transformers", "trl", "peft", "langgraph")},
        "engines": ", ".join(engines) or "none (install the extras trl and api)",
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")


for command in (
    version,
    training.demo,
    training.train,
    training.collect,
    training.evaluate,
    policies.chat,
    policies.serve,
    policies.mcp,
):
    app.command()(command)
app.command("try")(training.try_model)
app.add_typer(policies.policy, name="policy")
app.add_typer(traces.traces, name="traces")
app.add_typer(rewards.rewards, name="rewards")
app.add_typer(data.scenarios, name="scenarios")
app.add_typer(data.shop, name="shop")
app.add_typer(data.rules, name="rules")
