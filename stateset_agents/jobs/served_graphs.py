"""The graphs that `serve` puts behind the endpoint: the shop's, and those of your own."""

import dataclasses
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel

from stateset_agents.errors import BadInput
from stateset_agents.graphs import agent, orchestrator
from stateset_agents.graphs.agent import Domain
from stateset_agents.graphs.custom import check_breakpoints, check_graph
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.jobs.config import JobConfig
from stateset_agents.policy.chat_model import Policy
from stateset_agents.server.canary import Canary
from stateset_agents.server.served import (
    Graph,
    Served,
    Wishes,
    as_asked,
    no_instructions,
    served_agents,
)
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.database import Database

if TYPE_CHECKING:
    from stateset_agents.jobs.mcp_shop import Conversations

OWN_STEPS = 50
"""Supersteps of a turn of a graph of one's own, unless it has a limit of its own."""


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

    @property
    def streams(self) -> bool:
        """Whether words go to the customer as they are sampled; a guarded reply is seen whole or not at all."""
        return not self.guard

    def served(self, model: Policy, canary: Canary | None) -> Served:
        def policy(thread: str) -> Policy:
            return _of_version(model, canary, thread)

        if self.name == orchestrator.NAME:
            backends = orchestrator.over(self.shop, self.rules, approvals=self.approvals)
            return served_agents(
                compile=orchestrator.build,
                context=lambda t: orchestrator.context(
                    policy(t), backends, thread=t, guard=self.guard
                ),
                step_limit=orchestrator.STEP_LIMIT,
                ended=_watched(canary),
            )
        domain = DOMAINS[self.name]
        backend = agent.over(domain, self.shop, self.rules, approvals=self.approvals)
        return served_agents(
            compile=partial(agent.build, domain),
            context=lambda t: agent.context(domain, policy(t), backend, thread=t, guard=self.guard),
            step_limit=agent.STEP_LIMIT,
            ended=_watched(canary),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnGraph:
    """A graph of your own: a function of the chat model that returns a compiled graph, or a compiled one that reads
    `runtime.context["policy"]`. Its state has `messages`.

    Raises BadInput for anything else, before a policy is started.
    """

    name: str
    graph: Any
    speakers: Sequence[str] = ()
    """Nodes whose words reach the customer, as they are sampled; none: the last message of a turn."""

    def __post_init__(self) -> None:
        check_graph(self.graph, self.name)
        if isinstance(self.graph, Runnable) and not isinstance(self.graph, Pregel):
            raise BadInput(
                f"--graph {self.name}: to be served, expected a compiled LangGraph graph, found {type(self.graph).__name__}."
            )
        if isinstance(self.graph, Pregel):
            self._check(self.graph)
            return
        required = [
            p.name
            for p in inspect.signature(self.graph).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if len(required) > 1:
            raise BadInput(
                f"--graph {self.name}: to be served, expected a function of the chat model alone, found one that also needs "
                f"{', '.join(required[1:])}. A world is made for an episode; what customers act on has to be there already."
            )

    @property
    def streams(self) -> bool:
        return bool(self.speakers)

    def served(self, model: Policy, canary: Canary | None) -> Served:
        compiled = functools.lru_cache(maxsize=32)(partial(self._compiled, model))
        first = compiled(model.model_name, ())

        def begin(
            saver: BaseCheckpointSaver[str], thread: str, wishes: Wishes
        ) -> tuple[Graph, Any]:
            no_instructions(wishes)
            version = _of_version(model, canary, thread).model_name
            sampling = tuple(sorted(wishes.sampling.items()))
            context = None
            if isinstance(self.graph, Pregel):
                context = {"policy": _sampling(model, version, sampling)}
            return compiled(version, sampling).copy({"checkpointer": saver}), context

        return Served(
            begin=begin,
            step_limit=int((first.config or {}).get("recursion_limit", OWN_STEPS)),
            speakers=frozenset(self.speakers),
            ended=_watched(canary),
        )

    def _compiled(self, model: Policy, version: str, sampling: tuple[Any, ...]) -> Graph:
        """The graph with a policy in it; made once for each, since the function may open what it needs."""
        if isinstance(self.graph, Pregel):
            return self.graph
        made = self.graph(_sampling(model, version, sampling))
        if not isinstance(made, Pregel):
            raise BadInput(
                f"--graph {self.name}: expected a function that returns a compiled LangGraph graph, found "
                f"{type(made).__name__}."
            )
        self._check(made)
        return made

    def _check(self, graph: Graph) -> None:
        check_breakpoints(graph, self.name)
        if "messages" not in graph.channels:
            fields = [n for n in graph.channels if not n.startswith(("__", "branch:"))]
            raise BadInput(
                f"--graph {self.name}: to be served, expected a state with `messages`, found {', '.join(fields) or 'none'}."
            )
        nodes = {part for name in graph.get_graph(xray=True).nodes for part in name.split(":")}
        for speaker in self.speakers:
            if speaker not in nodes:
                known = ", ".join(sorted(nodes - {"__start__", "__end__"}))
                raise BadInput(
                    f"--speaks: expected a node of the graph ({known}), found {speaker!r}."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class McpGraph:
    """One of our agents over a shop over MCP: each conversation has a server, or a session, of its own."""

    name: str
    domain: Domain
    shop: "Conversations"
    guard: bool = True

    @property
    def streams(self) -> bool:
        return not self.guard

    def served(self, model: Policy, canary: Canary | None) -> Served:
        def begin(
            saver: BaseCheckpointSaver[str], thread: str, wishes: Wishes
        ) -> tuple[Graph, Any]:
            backend = self.shop.of(thread, goes_on=wishes.goes_on)
            context = agent.context(
                self.domain, _of_version(model, canary, thread), backend, thread=thread, guard=self.guard
            )  # fmt: skip
            return agent.build(self.domain, saver), as_asked(context, wishes)

        return Served(begin=begin, step_limit=agent.STEP_LIMIT, ended=_watched(canary))


AnyGraph = ServedGraph | OwnGraph | McpGraph


@asynccontextmanager
async def mcp_graph(config: JobConfig, *, guard: bool, approvals: bool) -> AsyncIterator[McpGraph]:
    """The agent of a config over its MCP server. Raises BadInput if the server does not answer."""
    try:
        from stateset_agents.jobs.mcp_shop import Conversations, domain_of, listed
    except ImportError as error:
        raise BadInput(
            f"--mcp: expected the package {error.name}, found none: install the extra 'mcp'."
        ) from None
    backend = await listed(config)
    backend.approvals = approvals
    shop = Conversations(backend)
    try:
        yield McpGraph(name=config.graph, domain=domain_of(config, backend), shop=shop, guard=guard)
    finally:
        await shop.close()


def _of_version(model: Policy, canary: Canary | None, thread: str) -> Policy:
    if canary is None:
        return model
    return model.model_copy(update={"model_name": canary.version(thread)})


def _sampling(model: Policy, version: str, sampling: tuple[Any, ...]) -> BaseChatModel:
    return model.model_copy(update={"model_name": version, **dict(sampling)})


def _watched(canary: Canary | None) -> Callable[[str, dict[str, Any] | None], None]:
    def ended(thread: str, state: dict[str, Any] | None) -> None:
        if canary is not None:
            canary.saw(thread, _is_trouble(state))

    return ended


def _is_trouble(state: dict[str, Any] | None) -> bool:
    """The guard metric of a canary: the turn failed, was handed to a person, or an attempt was denied or invalid."""
    if state is None or state.get("handed_off"):
        return True
    calls = state.get("tool_calls")
    statuses = (
        [c.get("status") for c in calls if isinstance(c, dict)] if isinstance(calls, list) else []
    )
    return any(status in ("denied", "invalid") for status in statuses)
