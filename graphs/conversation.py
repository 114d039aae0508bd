"""The conversation: a simulated customer and an agent graph take turns until one of them is done.

The agent runs on its own thread, so that the customer can answer its interrupts.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command

from stateset_agents.nodes.customer import CustomerSimulator
from stateset_agents.nodes.state import Agents

MAX_CONFIRMATIONS = 8


class ConversationState(TypedDict, total=False):
    turns: int
    customer_said: str | None
    agent_said: str | None
    over: bool
    truncated: bool
    forked: bool
    """The agent's thread holds the checkpoint of a decision; the agent continues from there first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationContext:
    customer: CustomerSimulator
    agent: CompiledStateGraph[Any, Any, Any, Any]
    """The agent's graph, compiled with a checkpointer."""
    agent_context: Agents
    thread: str
    max_turns: int
    step_limit: int
    forkable: bool = False
    """Whether every superstep leaves a checkpoint, so that it can be forked."""


async def customer(
    state: ConversationState, runtime: Runtime[ConversationContext]
) -> ConversationState:
    """The customer speaks, or leaves."""
    text = await runtime.context.customer.speak(state.get("agent_said"))
    if text is None:
        return {"over": True, "customer_said": None}
    if state.get("turns", 0) >= runtime.context.max_turns:
        return {"over": True, "truncated": True, "customer_said": None}
    return {"customer_said": text, "turns": state.get("turns", 0) + 1}


async def agent(
    state: ConversationState, runtime: Runtime[ConversationContext]
) -> ConversationState:
    """The agent takes its turn; the customer answers what it asks to confirm."""
    agent_run = runtime.context
    inner: RunnableConfig = {
        "configurable": {"thread_id": agent_run.thread},
        "recursion_limit": agent_run.step_limit,
        "callbacks": get_config().get("callbacks"),
    }
    send: Any = {"messages": [HumanMessage(state.get("customer_said") or "")]}
    if state.get("forked"):
        send = None
    for _ in range(MAX_CONFIRMATIONS):
        result = await agent_run.agent.ainvoke(
            send,
            inner,
            context=agent_run.agent_context,
            durability="sync" if agent_run.forkable else "exit",
        )
        waiting = result.get("__interrupt__")
        if not waiting:
            break
        write = waiting[0].value
        agreed = await agent_run.customer.confirm(write["tool"], write["arguments"])
        send = Command(resume={"confirmed": agreed})
    else:
        return {"over": True, "truncated": True, "forked": False}
    last = result["messages"][-1]
    text = last.text if isinstance(last, AIMessage) else ""
    return {"agent_said": text, "over": result.get("handed_off") is not None, "forked": False}


def build() -> CompiledStateGraph[
    ConversationState, ConversationContext, ConversationState, ConversationState
]:
    """Compile the conversation graph."""
    graph = StateGraph(ConversationState, context_schema=ConversationContext)
    graph.add_node("customer", customer)
    graph.add_node("agent", agent)
    graph.add_conditional_edges(
        START, lambda state: "agent" if state.get("forked") else "customer", ["agent", "customer"]
    )
    graph.add_conditional_edges("customer", _over("agent"), ["agent", END])
    graph.add_conditional_edges("agent", _over("customer"), ["customer", END])
    return graph.compile(name="conversation")


def _over(otherwise: str) -> Any:
    def route(state: ConversationState) -> str:
        return END if state.get("over") else otherwise

    return route
