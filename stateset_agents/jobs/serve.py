"""`serve`: a shop, a policy and the endpoint, wired together."""

import dataclasses
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from langgraph.checkpoint.base import BaseCheckpointSaver

from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.serve_policy import LOOPBACK
from stateset_agents.jobs.served_graphs import AnyGraph, ServedGraph
from stateset_agents.policy.chat_model import Policy
from stateset_agents.server import listening
from stateset_agents.server.app import build
from stateset_agents.server.canary import Canary
from stateset_agents.server.conversations import Conversations, kept_in
from stateset_agents.server.served import Graph, Served, Wishes
from stateset_agents.server.supervisor import port_is_free
from stateset_agents.traces.record import record
from stateset_agents.traces.redaction import Redacted, Redactor
from stateset_agents.traces.sink import TraceSink
from stateset_agents.traces.store import TraceStore

MAX_TOKENS = 512
"""Tokens of one call of the policy at most, by default."""


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
    max_tokens: int = MAX_TOKENS
    """Tokens of one call of the policy at most."""


def service_app(
    graph: AnyGraph, policy: Policy, *, key: str | None, conversations: Conversations | None = None,
    sink: TraceSink | None = None, canary: Canary | None = None, max_tokens: int = MAX_TOKENS,
) -> FastAPI:  # fmt: skip
    """The endpoint for a graph with a served policy. Each answer is a trace where `sink` is given, under the id that the client is
    told. `canary` has its version answer a share of the conversations."""
    model = policy.model_copy(
        update={
            "temperature": 0.0,
            "exact": sink is not None,
            "disable_streaming": not graph.streams,
            "stream_usage": True,
            "max_tokens": max_tokens,
        }
    )
    served = graph.served(model, canary)
    if sink is not None:
        served = _recorded(served, sink)
    return build({graph.name: served}, key=key, conversations=conversations)


def _recorded(served: Served, sink: TraceSink) -> Served:
    def begin(saver: BaseCheckpointSaver[str], thread: str, wishes: Wishes) -> tuple[Graph, Any]:
        graph, context = served.begin(saver, thread, wishes)
        return record(graph, sink, redact=False), context

    return dataclasses.replace(served, begin=begin)


@asynccontextmanager
async def _recording(traces: str | None) -> AsyncIterator[TraceSink | None]:
    """The store as a sink that removes personal data."""
    if traces is None:
        yield None
        return
    with TraceStore(traces) as store:
        yield Redacted(store, Redactor())


async def serve_graph(
    config: JobConfig, adapter: Path | None, graph: AnyGraph, options: ServeOptions
) -> None:
    """Serve until stopped. Beyond loopback a key is needed; if none is set, one is made and printed once."""
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
                canary=canary, max_tokens=options.max_tokens,
            )  # fmt: skip
            _introduce(graph, options)
            await uvicorn.Server(listening.config(app, options.host, options.port)).serve()


def _introduce(graph: AnyGraph, options: ServeOptions) -> None:
    """Print the graph's address, and of a shop an order to ask about."""
    where = f"graph '{graph.name}' at http://{options.host}:{options.port}/v1"
    if not isinstance(graph, ServedGraph):
        print(where, flush=True)
        return
    example = graph.shop.the(
        "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id "
        "ORDER BY orders.id LIMIT 1"
    )
    print(f"{where} (try order {example['id']}, zip {example['zip']})", flush=True)
