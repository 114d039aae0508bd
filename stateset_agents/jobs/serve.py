"""`serve`: a shop, a policy and the endpoint, wired together."""

import dataclasses
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from stateset_agents.errors import BadInput
from stateset_agents.graphs import agent, orchestrator
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.names import GRAPHS
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.serve_policy import LOOPBACK
from stateset_agents.policy.chat_model import Policy
from stateset_agents.server import listening
from stateset_agents.server.app import Served, build
from stateset_agents.server.canary import Canary
from stateset_agents.server.conversations import Conversations, kept_in
from stateset_agents.server.supervisor import port_is_free
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.database import Database
from stateset_agents.traces.record import record
from stateset_agents.traces.redaction import Redacted, Redactor
from stateset_agents.traces.sink import TraceSink
from stateset_agents.traces.store import TraceStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedGraph:
    """One of the shop's graphs, and the shop that it acts on."""

    name: str = "service"
    shop: Database
    rules: Sequence[Rule] | None = None
    """Default: the shop's own."""
    guard: bool = True
    """Hold back replies that state what no tool said."""
    approvals: bool = False
    """A person answers the calls of `approve`, which rules of effect `approval` lead to; otherwise they deny."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a graph is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    """Default: none on loopback; elsewhere one is made and printed once."""
    state: str | None = None
    """Where conversations are kept; default: memory."""
    traces: str | None = None
    """The store that records every answer; default: none."""
    canary: Path | None = None
    """A newer version's weights, for a share of the conversations."""
    canary_share: float = 0.1


def service_app(
    graph: ServedGraph, policy: Policy, *, key: str | None, conversations: Conversations | None = None,
    sink: TraceSink | None = None, canary: Canary | None = None,
) -> FastAPI:  # fmt: skip
    """The endpoint for a graph with a served policy. Each answer is a trace where `sink` is given, under the id that the client is
    told. `canary` has its version answer a share of the conversations."""
    model = policy.model_copy(
        update={
            "temperature": 0.0,
            "exact": sink is not None,
            "disable_streaming": graph.guard,  # a guarded reply is seen whole or not at all
            "stream_usage": True,
            "max_tokens": 160,
        }
    )
    served = _served(graph, model, canary)
    if sink is not None:
        compiled = served.compile
        served = dataclasses.replace(
            served, compile=lambda saver: record(compiled(saver), sink, redact=False)
        )
    return build({graph.name: served}, key=key, conversations=conversations)


@asynccontextmanager
async def _recording(traces: str | None) -> AsyncIterator[TraceSink | None]:
    """The store as a sink that removes personal data."""
    if traces is None:
        yield None
        return
    with TraceStore(traces) as store:
        yield Redacted(store, Redactor())


def _served(graph: ServedGraph, model: Policy, canary: Canary | None) -> Served:
    def policy(thread: str) -> Policy:
        if canary is None:
            return model
        return model.model_copy(update={"model_name": canary.version(thread)})

    def ended(thread: str, state: dict[str, Any] | None) -> None:
        if canary is not None:
            canary.saw(thread, _is_trouble(state))

    if graph.name == orchestrator.NAME:
        backends = orchestrator.over(graph.shop, graph.rules)
        return Served(
            compile=orchestrator.build,
            context=lambda t: orchestrator.context(
                policy(t), backends, thread=t, guard=graph.guard
            ),
            step_limit=orchestrator.STEP_LIMIT,
            ended=ended,
        )
    domain = DOMAINS[graph.name]
    backend = agent.over(domain, graph.shop, graph.rules, approvals=graph.approvals)
    return Served(
        compile=partial(agent.build, domain),
        context=lambda t: agent.context(domain, policy(t), backend, thread=t, guard=graph.guard),
        step_limit=agent.STEP_LIMIT,
        ended=ended,
    )


def _is_trouble(state: dict[str, Any] | None) -> bool:
    """The guard metric of a canary: the turn failed, was handed to a person, or an attempt was denied or invalid."""
    if state is None or state.get("handed_off"):
        return True
    return any(call["status"] in ("denied", "invalid") for call in state.get("tool_calls", []))


async def serve_graph(
    config: JobConfig, adapter: Path | None, graph: ServedGraph, options: ServeOptions
) -> None:
    """Serve until stopped. Beyond loopback a key is needed; if none is set, one is made and printed once."""
    if graph.name not in GRAPHS:
        raise BadInput(f"--graph: expected one of {', '.join(GRAPHS)}, found {graph.name!r}.")
    port_is_free(options.host, options.port)
    key = options.key
    if key is None and options.host not in LOOPBACK:
        key = secrets.token_urlsafe(24)
        print(f"STATESET_API_KEY is not set; the key of this server is {key}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            kept_in(options.state) as conversations,
            _recording(options.traces) as sink,
            served_policy(
                config,
                adapter,
                Path(folder),
                print,
                exact=options.traces is not None,
                later=[options.canary] if options.canary else [],
            ) as policy_server,
        ):
            canary = None
            if options.canary is not None:
                newer = await policy_server.serve_adapter(options.canary)
                canary = Canary(policy_server.name, newer, share=options.canary_share)
            app = service_app(
                graph, policy_server.policy(retry_seconds=0), key=key, conversations=conversations, sink=sink,
                canary=canary,
            )  # fmt: skip
            _introduce(graph, options)
            await uvicorn.Server(listening.config(app, options.host, options.port)).serve()


def _introduce(graph: ServedGraph, options: ServeOptions) -> None:
    """Print the graph's address, and an order to ask about."""
    example = graph.shop.the(
        "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id "
        "ORDER BY orders.id LIMIT 1"
    )
    print(
        f"graph '{graph.name}' at http://{options.host}:{options.port}/v1 (try order {example['id']}, zip {example['zip']})",
        flush=True,
    )
