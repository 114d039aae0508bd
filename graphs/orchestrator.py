"""The `orchestrator` graph: one conversation, passed between the shop's agents, with one session and one trace.

route -> service | sales | returns | fulfilment | pricing | risk      (each the agent's whole graph)
          any of them -> transfer -> another of them
"""

import functools
from collections.abc import Mapping, Sequence

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from stateset_agents.graphs import agent
from stateset_agents.graphs.agent import Domain
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.nodes.orchestrator import NAME, Router, TeamState, first
from stateset_agents.nodes.state import AgentContext, Agents, Bound
from stateset_agents.tools.backend import ShopBackend
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.tool import Role

__all__ = ["NAME", "STEP_LIMIT", "build", "context", "over"]

STEP_LIMIT = 60

TeamGraph = CompiledStateGraph[TeamState, Agents, TeamState, TeamState]

FRONT = Domain(
    name=NAME, duty="You pass a conversation to the agent whose business it is.", tools=()
)


def build(checkpointer: Checkpointer = None, *, bound: Bound | None = None) -> TeamGraph:
    """Compile the orchestrator with every agent's graph in it. `bound` makes the context of runs that bring
    none."""
    if bound is None:
        return _compiled().copy({"checkpointer": checkpointer})
    return _compile(checkpointer, bound)


@functools.cache
def _compiled() -> TeamGraph:
    return _compile(None, None)


def _compile(checkpointer: Checkpointer, bound: Bound | None) -> TeamGraph:
    graph = StateGraph(TeamState, context_schema=Agents)
    graph.add_node(
        "route",
        Router(bound).route,
        timeout=agent.NODE_SECONDS["policy"],
        destinations=(*DOMAINS, END),
    )
    for name, domain in DOMAINS.items():
        graph.add_node(name, agent.build(domain, bound=bound), destinations=(*DOMAINS, END))
        graph.add_edge(name, END)
    graph.add_conditional_edges(START, first, ["route", *DOMAINS])
    return graph.compile(checkpointer=checkpointer, name=NAME)


def over(
    shop: Database,
    rules: Sequence[Rule] | None = None,
    *,
    approvals: bool = False,
    threads: bool | None = None,
) -> Mapping[str, ShopBackend]:
    """Every agent's tools over a shop of ours."""
    every = {NAME: FRONT, **DOMAINS}
    return {
        n: agent.over(d, shop, rules, approvals=approvals, threads=threads)
        for n, d in every.items()
    }


def context(
    policy: BaseChatModel,
    backends: Mapping[str, ShopBackend],
    *,
    thread: str,
    customer: str = "",
    role: Role = "customer",
    guard: bool = False,
) -> Agents:
    """The context of a run. `role` is the role of the signed-in user: agents for staff or the merchant serve only those."""
    allowed = tuple(n for n, d in DOMAINS.items() if d.role in ("customer", role))
    team: dict[str, AgentContext] = {}
    for name, domain in {NAME: FRONT, **{n: DOMAINS[n] for n in allowed}}.items():
        colleagues = tuple(other for other in allowed if other != name)
        team |= agent.context(
            domain, policy, backends[name], thread=thread, customer=customer, guard=guard,
            colleagues=colleagues,
        ).team  # fmt: skip
    return Agents(team=team)
