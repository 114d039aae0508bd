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
from stateset_agents.jobs.config import GRAPHS, JobConfig
from stateset_agents.jobs.policy_server import serve_adapter, served_policy
from stateset_agents.policy.chat_model import Policy, connect
from stateset_agents.server.app import Served, build
from stateset_agents.server.canary import Canary
from stateset_agents.server.conversations import Conversations, kept_in
from stateset_agents.server.supervisor import port_is_free
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.database import Database
from stateset_agents.traces.recorder import record
from stateset_agents.traces.redaction import Redacted, Redactor
from stateset_agents.traces.sink import Keeper
from stateset_agents.traces.store import TraceStore


def service_app(
    shop: Database,
    base_url: str,
    policy: str,
    *,
    key: str | None,
    graph: str = "service",
    rules: Sequence[Rule] | None = None,
    guard: bool = True,
    conversations: Conversations | None = None,
    keeper: Keeper | None = None,
    canary: Canary | None = None,
) -> FastAPI:
    """The endpoint for one of the shop's graphs, with a served policy and rules of one's own; each answer is a trace
    where `keeper` is given, under the id that the client is told. `canary` has its version answer a share of the conversations."""
    model = connect(base_url, policy, exact=keeper is not None).model_copy(
        update={
            "temperature": 0.0,
            "disable_streaming": guard,  # a guarded reply is seen whole or not at all
            "stream_usage": True,
            "max_tokens": 160,
        }
    )
    served = _served(graph, model, shop, rules, guard, canary)
    if keeper is not None:
        served_compile = served.compile
        served = dataclasses.replace(
            served, compile=lambda saver: record(served_compile(saver), keeper, redact=False)
        )
    return build({graph: served}, key=key, conversations=conversations)


@asynccontextmanager
async def _recording(traces: str | None) -> AsyncIterator[Keeper | None]:
    """A store that hears everything without personal data."""
    if traces is None:
        yield None
        return
    with TraceStore(traces) as store:
        yield Redacted(store, Redactor())


def _served(
    name: str,
    model: Policy,
    shop: Database,
    rules: Sequence[Rule] | None,
    guard: bool,
    canary: Canary | None,
) -> Served:
    def policy(thread: str) -> Policy:
        if canary is None:
            return model
        return model.model_copy(update={"model_name": canary.version(thread)})

    def ended(thread: str, state: dict[str, Any] | None) -> None:
        if canary is not None:
            canary.saw(thread, _trouble(state))

    if name == orchestrator.NAME:
        backends = orchestrator.over(shop, rules)
        return Served(
            compile=orchestrator.build,
            context=lambda t: orchestrator.context(policy(t), backends, thread=t, guard=guard),
            step_limit=orchestrator.STEP_LIMIT,
            ended=ended,
        )
    domain = DOMAINS[name]
    backend = agent.over(domain, shop, rules)
    return Served(
        compile=partial(agent.build, domain),
        context=lambda t: agent.context(domain, policy(t), backend, thread=t, guard=guard),
        step_limit=agent.STEP_LIMIT,
        ended=ended,
    )


def _trouble(state: dict[str, Any] | None) -> bool:
    """What a canary is guarded by: the turn failed, a person had to take over, or the agent tried what a rule forbids or a tool does
    not take."""
    if state is None or state.get("handed_off"):
        return True
    return any(call["status"] in ("denied", "invalid") for call in state.get("tool_calls", []))


async def serve_graph(
    config: JobConfig,
    adapter: Path | None,
    shop: Database,
    *,
    host: str,
    port: int,
    key: str | None,
    rules: Sequence[Rule] | None = None,
    guard: bool = True,
    state: str | None = None,
    traces: str | None = None,
    canary: Path | None = None,
    canary_share: float = 0.1,
) -> None:
    """Serve until stopped. Beyond loopback a key is needed; without one it is made and shown once."""
    if config.graph not in GRAPHS:
        known = ", ".join(GRAPHS)
        raise BadInput(f"--graph: expected one of {known}, found {config.graph!r}.")
    port_is_free(host, port)
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        key = secrets.token_urlsafe(24)
        print(f"STATESET_API_KEY is not set; the key of this server is {key}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            kept_in(state) as conversations,
            _recording(traces) as keeper,
            served_policy(
                config,
                adapter,
                Path(folder),
                print,
                exact=traces is not None,
                also=[canary] if canary else [],
            ) as (
                url,
                name,
            ),
        ):
            tried = None
            if canary is not None:
                tried = Canary(name, await serve_adapter(url, canary), share=canary_share)
            app = service_app(
                shop, url, name, key=key, graph=config.graph, rules=rules, guard=guard,
                conversations=conversations, keeper=keeper, canary=tried,
            )  # fmt: skip
            example = shop.the(
                "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id "
                "ORDER BY orders.id LIMIT 1"
            )
            print(
                f"graph '{config.graph}' at http://{host}:{port}/v1 (try order {example['id']}, zip {example['zip']})",
                flush=True,
            )
            server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning"))
            await server.serve()
