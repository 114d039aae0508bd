"""`policy`, `chat`, `serve` and `mcp`: the commands that put a policy or the shop to use."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from stateset_agents.cli.sources import (
    Database,
    Meaning,
    Rules,
    Schema,
    Seed,
    rules_from,
    shop_from,
)

policy = typer.Typer(no_args_is_help=True, help="Build and serve policies.")


def chat(
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder; the seed without it.")
    ] = None,
    model: str = "seed",
    base_url: str | None = None,
    seed: Annotated[int, typer.Option(help="Which generated customer you play.")] = 1,
    temperature: float = 0.0,
) -> None:
    """Talk to a policy as a customer of the shop, and see the tool calls as they happen."""
    from stateset_agents import jobs
    from stateset_agents.chat import chat_loop
    from stateset_agents.settings import load_settings

    adapter = jobs.find_adapter(policy) if policy else None
    config = jobs.check_config({"model": model, "base_url": base_url or load_settings().base_url})
    asyncio.run(chat_loop(config, adapter, seed=seed, temperature=temperature))


def serve(
    graph: Annotated[str, typer.Option(help="Which of the shop's graphs answers.")] = "service",
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder; the seed without it.")
    ] = None,
    model: str = "seed",
    base_url: str | None = None,
    database: Database = None,
    schema: Schema = "shop",
    shop_seed: Seed = 1,
    rules: Rules = None,
    meaning: Meaning = None,
    guard: Annotated[
        bool, typer.Option(help="Hold back replies that state what no tool said.")
    ] = True,
    state: Annotated[
        str | None,
        typer.Option(
            help="Where conversations are kept: a SQLite file or postgresql://…; memory without it."
        ),
    ] = None,
    traces: Annotated[
        str | None, typer.Option(help="Record every answer into a store, personal data redacted.")
    ] = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Answer OpenAI's chat protocol with a graph and its policy."""
    from stateset_agents import jobs
    from stateset_agents.serving import serve_graph
    from stateset_agents.settings import load_settings

    adapter = jobs.find_adapter(policy) if policy else None
    settings = load_settings()
    config = jobs.check_config(
        {"graph": graph, "model": model, "base_url": base_url or settings.base_url}
    )
    key = settings.api_key.get_secret_value() if settings.api_key else None
    asyncio.run(
        serve_graph(
            config, adapter, shop_from(database, schema, shop_seed, meaning), host=host, port=port, key=key,
            rules=rules_from(rules), guard=guard, state=state, traces=traces,
        )
    )  # fmt: skip


def mcp(
    database: Database = None,
    schema: Schema = "shop",
    shop_seed: Seed = 1,
    rules: Rules = None,
    meaning: Meaning = None,
    customer: Annotated[str, typer.Option(help="Id of the customer who has signed in.")] = "",
) -> None:
    """Offer the shop's tools to an MCP client over standard input and output."""
    from stateset_agents.errors import BadInput
    from stateset_agents.tools.executor import Executor
    from stateset_agents.tools.toolset import ALL_TOOLS

    try:
        from stateset_agents.tools.mcp_server import serve_stdio
    except ImportError:
        raise BadInput("Expected the package mcp, found none: install the extra 'mcp'.") from None
    shop = shop_from(database, schema, shop_seed, meaning)
    executor = Executor(shop, ALL_TOOLS, rules_from(rules))
    asyncio.run(serve_stdio(executor, customer=customer))


@policy.command("build")
def policy_build(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    steps: Annotated[int, typer.Option(help="Steps on transcripts.")] = 1700,
    seed: int = 0,
) -> None:
    """Raise the seed policy from nothing (about half an hour on two cores)."""
    from stateset_agents.seed_job import build_seed

    build_seed(out, steps=steps, seed=seed)


@policy.command("serve")
def policy_serve(
    model: str = "seed",
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder, served as its last version.")
    ] = None,
    host: str = "127.0.0.1",
    port: int = 8001,
    threads: int = 1,
) -> None:
    """Serve a policy with the embedded engine, as vLLM would."""
    import subprocess

    from stateset_agents import jobs
    from stateset_agents.server.engine.process import port_is_free

    port_is_free(host, port)
    command = [
        sys.executable, "-m", "stateset_agents.server.engine", "--model", jobs.model_path(model),
        "--host", host, "--port", str(port), "--threads", str(threads),
    ]  # fmt: skip
    if policy is not None:
        command += ["--adapter", f"policy-trained={jobs.find_adapter(policy)}"]
    print(f"policy at http://{host}:{port}/v1 (stop with Ctrl-C)", flush=True)
    raise typer.Exit(subprocess.call(command))
