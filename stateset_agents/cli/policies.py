"""`policy`, `chat`, `serve` and `mcp`: the commands that put a policy or the shop to use."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from stateset_agents.cli.graph_choice import MCP_FIELDS, graph_of
from stateset_agents.cli.help import CommandLine
from stateset_agents.cli.options import Values, config_options
from stateset_agents.cli.sources import (
    Database,
    Meaning,
    Rules,
    Schema,
    Seed,
    customer_of,
    rules_from,
    shop_from,
)

PolicyFolder = Annotated[
    Path | None, typer.Option(help="A run's folder; default: the seed policy.")
]
policy = CommandLine(help="Build and serve policies.")

Graph = Annotated[
    str,
    typer.Option(
        help="One of the shop's graphs, or package.module:graph, whose state has messages."
    ),
]
MaybeSchema = Annotated[
    str | None, typer.Option(help="The shop's schema in that database; default: shop.")
]
MaxTokens = Annotated[int, typer.Option(help="Tokens of one call of the policy at most.", min=1)]


@config_options("model", "base_url", "engine", "max_model_len", "rules", *MCP_FIELDS, panels=False)
def chat(
    values: Values,
    graph: Graph = "service",
    policy: PolicyFolder = None,
    database: Database = None,
    schema: MaybeSchema = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Which generated customer you play, where no database is given; default: 1."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    max_tokens: MaxTokens = 512,
) -> None:
    """Talk to a graph as a customer, and see the tool calls as they happen."""
    from stateset_agents.cli.chat import chat_loop
    from stateset_agents.jobs.config import check_config
    from stateset_agents.policy.weight_files import find_adapter
    from stateset_agents.server.launch import where

    adapter = find_adapter(policy) if policy else None
    values |= where(values.pop("base_url", None), values.get("engine"))
    config, scenario, shop = check_config({"graph": graph, **values}), None, None
    if config.bundled and database is None:
        scenario, shop = customer_of(graph, 1 if seed is None else seed)
    chosen = graph_of(
        config, database=database, schema=schema, shop=shop, shop_options={"seed": seed},
        approvals=True if config.mcp else None,
    )  # fmt: skip

    async def talk() -> None:
        async with chosen as played:
            await chat_loop(
                config, adapter, played, temperature=temperature, max_tokens=max_tokens, scenario=scenario
            )  # fmt: skip

    asyncio.run(talk())


@config_options("model", "base_url", "engine", "max_model_len", "rules", *MCP_FIELDS, panels=False)
def serve(
    values: Values,
    graph: Graph = "service",
    speaks: Annotated[
        list[str] | None,
        typer.Option(
            help="Node of a graph of your own whose words reach the customer; default: the last message of a turn. May be repeated."
        ),
    ] = None,
    policy: PolicyFolder = None,
    database: Database = None,
    schema: MaybeSchema = None,
    shop_seed: Annotated[
        int | None,
        typer.Option(help="Which generated shop, where no database is given; default: 1."),
    ] = None,
    meaning: Meaning = None,
    guard: Annotated[
        bool | None,
        typer.Option(
            "--guard/--no-guard",
            help="Hold back replies that state what no tool said; default: yes.",
        ),
    ] = None,
    approvals: Annotated[
        bool,
        typer.Option(
            help="Rules of effect approval ask a person: your app answers the calls of `approve`. Without it they deny."
        ),
    ] = False,
    state: Annotated[
        str | None,
        typer.Option(
            help="Where conversations are kept: a SQLite file or postgresql://…; default: memory."
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
    max_tokens: MaxTokens = 512,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Answer OpenAI's chat protocol with a graph and its policy."""
    from stateset_agents.jobs.config import check_config
    from stateset_agents.jobs.serve import ServeOptions
    from stateset_agents.policy.weight_files import find_adapter
    from stateset_agents.server.launch import where
    from stateset_agents.settings import load_settings

    adapter = find_adapter(policy) if policy else None
    settings = load_settings()
    values |= where(values.pop("base_url", None), values.get("engine"))
    config = check_config({"graph": graph, **values})
    chosen = graph_of(
        config, database=database, schema=schema, shop_options={"shop_seed": shop_seed, "meaning": meaning}, speaks=speaks,
        guard=guard, approvals=approvals or None,
    )  # fmt: skip
    options = ServeOptions(
        host=host,
        port=port,
        key=settings.api_key.get_secret_value() if settings.api_key else None,
        state=state,
        traces=traces,
        canary=find_adapter(canary) if canary else None,
        canary_share=canary_share,
        max_tokens=max_tokens,
    )
    asyncio.run(_serve(config, adapter, chosen, options))


async def _serve(config: Any, adapter: Path | None, chosen: Any, options: Any) -> None:
    from stateset_agents.jobs.serve import serve_graph

    async with chosen as answering:
        await serve_graph(config, adapter, answering, options)


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
    seed: Annotated[int, typer.Option(help="Seed of the weights and the data.")] = 0,
) -> None:
    """Train the bundled model from scratch (about half an hour on two cores)."""
    from stateset_agents.jobs.seed_policy import build_seed

    build_seed(out, steps=steps, seed=seed)


@policy.command("install-vllm")
def policy_install(
    into: Annotated[
        Path | None, typer.Option(help="Its folder; default: the setting STATESET_VLLM.")
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
@config_options(
    "model", "engine", "replicas", "rank", "max_model_len", "gpu_memory_utilization", "tool_parser", panels=False
)  # fmt: skip
def policy_serve(
    values: Values,
    policy: Annotated[
        Path | None,
        typer.Option(help="A run's folder, served beside the model as 'policy-trained'."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; further replicas take those after it.")] = 8001,
    threads: Annotated[int, typer.Option(help="Threads of each replica, on a CPU.")] = 1,
    slots: Annotated[int, typer.Option(help="Sequences at once, of each replica.")] = 96,
    adapters_from: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder below which the embedded engine loads adapters; default: the current one. May be repeated."
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Further options of vLLM's, after `--`.", metavar="VLLM_OPTIONS"),
    ] = None,
) -> None:
    """Serve a policy with vLLM or the embedded engine, and start it again when it dies."""
    from stateset_agents.jobs.config import check_config
    from stateset_agents.jobs.serve_policy import serve_policy
    from stateset_agents.policy.weight_files import find_adapter
    from stateset_agents.server.options import ServerOptions

    config = check_config(values)
    adapter = find_adapter(policy) if policy else None
    server = ServerOptions(
        host=host,
        port=port,
        threads=threads,
        slots=slots,
        extra=tuple(options or ()),
        adapters_from=tuple(adapters_from or ()),
    )
    asyncio.run(serve_policy(config, adapter, server))
