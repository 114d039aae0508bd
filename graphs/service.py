"""The `service` graph: an agent that verifies, looks up, changes with consent, and hands over.

identity -> policy -> tools -> policy -> ... -> end of turn
                        |-> confirm (interrupt) -> policy
                        |-> handoff -> end
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from stateset_agents.nodes import service as nodes
from stateset_agents.nodes.service import ServiceContext, ServiceState
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


def context(
    policy: BaseChatModel,
    shop: Shop,
    *,
    thread: str,
    customer: str = "",
    rules: Sequence[Rule] | None = None,
    guard: bool = False,
) -> ServiceContext:
    """What a run of the service graph needs: the policy with the service tools, and the shop under its
    rules (the ones it ships with, unless others are given). With `guard`, a reply that states what no tool
    and no customer said is held back."""
    schemas: list[dict[str, Any]] = [tool.schema() for tool in SERVICE_TOOLS]
    return ServiceContext(
        policy=policy.bind(tools=schemas),
        executor=Executor(shop, SERVICE_TOOLS, rules),
        prompt=SERVICE_PROMPT,
        thread=thread,
        customer=customer,
        guard=guard,
    )
