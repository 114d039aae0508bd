"""The `service` graph: an agent that verifies, looks up, changes with consent, and hands over.

identity -> policy -> tools -> policy -> ... -> end of turn
                        |-> confirm (interrupt) -> policy
                        |-> handoff -> end
"""

from collections.abc import Sequence

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from stateset_agents.nodes import service as nodes
from stateset_agents.nodes.service import ServiceContext, ServiceState
from stateset_agents.tools.backend import Backend, ShopBackend
from stateset_agents.tools.database import Database
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.prompts import SERVICE_PROMPT
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop import Shop
from stateset_agents.tools.toolset import SERVICE_TOOLS

STEP_LIMIT = 40
"""Supersteps that one turn may take; set on every run, since LangGraph's default is 10,000."""

ServiceGraph = CompiledStateGraph[ServiceState, ServiceContext, ServiceState, ServiceState]


def build(checkpointer: Checkpointer = None) -> ServiceGraph:
    """Compile the service graph. Interrupts need a checkpointer; without one, LangGraph's server adds its own."""
    graph = StateGraph(ServiceState, context_schema=ServiceContext)
    graph.add_node("identity", nodes.identity)
    graph.add_node("policy", nodes.policy)
    graph.add_node("tools", nodes.tools)
    graph.add_node("confirm", nodes.confirm)
    graph.add_node("handoff", nodes.handoff)
    graph.add_edge(START, "identity")
    graph.add_conditional_edges("identity", nodes.after_identity, ["handoff", "policy"])
    graph.add_conditional_edges("policy", nodes.after_policy, ["tools", END])
    graph.add_conditional_edges("tools", nodes.after_tools, ["confirm", "handoff", "policy"])
    graph.add_conditional_edges("confirm", nodes.after_confirm, ["tools", "policy"])
    graph.add_edge("handoff", END)
    return graph.compile(checkpointer=checkpointer, name="service")


def over(shop: Database, rules: Sequence[Rule] | None = None) -> ShopBackend:
    """The service tools over a shop of ours, under its rules unless others are given."""
    return ShopBackend(Executor(shop, SERVICE_TOOLS, rules), threads=not isinstance(shop, Shop))


def context(
    policy: BaseChatModel,
    backend: Backend,
    *,
    thread: str,
    customer: str = "",
    guard: bool = False,
) -> ServiceContext:
    """What a run of the service graph needs: the policy with the backend's tools, and the backend. With
    `guard`, a reply that states what no tool and no customer said is held back."""
    return ServiceContext(
        policy=policy.bind(tools=[offer.schema for offer in backend.offers.values()]),
        backend=backend,
        prompt=SERVICE_PROMPT,
        thread=thread,
        customer=customer,
        guard=guard,
    )
