"""`policy`, `chat`, `serve` and `mcp`: the commands that put a policy or the shop to use."""

import asyncio
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

RUNNING = "Policy servers that run already, as http://host:port/v1, with commas between several."
ENGINE = "embedded, vllm, or auto: vLLM where it is installed."
policy = typer.Typer(no_args_is_help=True, help="Build and serve policies.")


def chat(
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder; the seed without it.")
    ] = None,
    model: str = "seed",
    base_url: Annotated[str | None, typer.Option(help=RUNNING)] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    seed: Annotated[int, typer.Option(help="Which generated customer you play.")] = 1,
    temperature: float = 0.0,
) -> None:
    """Talk to a policy as a customer of the shop, and see the tool calls as they happen."""
    from stateset_agents.cli.chat import chat_loop
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import policy_server

    adapter = policy_server.find_adapter(policy) if policy else None
    config = job_config.check_config({"model": model, **policy_server.where(base_url, engine)})
    asyncio.run(chat_loop(config, adapter, seed=seed, temperature=temperature))


def serve(
    graph: Annotated[str, typer.Option(help="Which of the shop's graphs answers.")] = "service",
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder; the seed without it.")
    ] = None,
    model: str = "seed",
    base_url: Annotated[str | None, typer.Option(help=RUNNING)] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
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
    canary: Annotated[
        Path | None,
        typer.Option(
            help="A newer run's folder that answers a share of the conversations, until it proves worse or good."
        ),
    ] = None,
    canary_share: Annotated[float, typer.Option(help="Which share.")] = 0.1,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Answer OpenAI's chat protocol with a graph and its policy."""
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import policy_server
    from stateset_agents.jobs.serve import serve_graph
    from stateset_agents.settings import load_settings

    adapter = policy_server.find_adapter(policy) if policy else None
    settings = load_settings()
    config = job_config.check_config(
        {"graph": graph, "model": model, **policy_server.where(base_url, engine)}
    )
    key = settings.api_key.get_secret_value() if settings.api_key else None
    asyncio.run(
        serve_graph(
            config, adapter, shop_from(database, schema, shop_seed, meaning), host=host, port=port, key=key,
            rules=rules_from(rules), guard=guard, state=state, traces=traces,
            canary=policy_server.find_adapter(canary) if canary else None, canary_share=canary_share,
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
    from stateset_agents.jobs.seed_policy import build_seed

    build_seed(out, steps=steps, seed=seed)


@policy.command("install-vllm")
def policy_install(
    into: Annotated[
        Path | None, typer.Option(help="Its folder; the setting `vllm` without it.")
    ] = None,
) -> None:
    """Build the environment that vLLM runs in, apart from this one (about 3 GB)."""
    from stateset_agents.server.vllm.install import install
    from stateset_agents.settings import load_settings

    python = install(into or load_settings().vllm)
    print(
        f"vLLM is in {python.parent.parent}; start it with `stateset-agents policy serve --engine vllm`"
    )


@policy.command("serve")
def policy_serve(
    model: str = "seed",
    policy: Annotated[
        Path | None,
        typer.Option(help="A run's folder, served beside the model as 'policy-trained'."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The first one; replicas take those after it.")] = 8001,
    replicas: Annotated[int, typer.Option(help="Servers side by side.")] = 1,
    threads: Annotated[int, typer.Option(help="On a CPU, for each.")] = 1,
    slots: Annotated[int, typer.Option(help="Sequences at once, for each.")] = 96,
    rank: Annotated[int, typer.Option(help="The largest rank of an adapter (vLLM).")] = 16,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of a conversation (vLLM).")
    ] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="vLLM's.")] = None,
    tool_parser: Annotated[
        str | None,
        typer.Option(help="vLLM's reader of tool calls; the chat template tells, without it."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(help="Further options of vLLM's, after `--`.")
    ] = None,
) -> None:
    """Serve a policy with vLLM or the embedded engine, and start it again when it dies."""
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import policy_server

    values = {
        "model": model, "engine": engine, "replicas": replicas, "rank": rank, "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization, "tool_parser": tool_parser,
    }  # fmt: skip
    config = job_config.check_config(
        {name: value for name, value in values.items() if value is not None}
    )
    adapter = policy_server.find_adapter(policy) if policy else None
    asyncio.run(
        policy_server.serve(
            config, adapter, host=host, port=port, threads=threads, slots=slots, extra=tuple(options or ())
        )
    )  # fmt: skip
