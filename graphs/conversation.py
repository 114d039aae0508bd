"""The conversation: a simulated customer and an agent graph take turns until one of them is done.

The agent runs on its own thread, so that the customer can answer its interrupts.
"""

import functools
from dataclasses import dataclass
from typing import Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from langgraph.types import Command

from stateset_agents.graphs.run_result import RunResult
from stateset_agents.nodes.answers import answer_to
from stateset_agents.nodes.customer import CustomerSimulator

MAX_ANSWERS = 20
"""Interrupts that the customer answers in one turn of the agent."""


class ConversationState(TypedDict, total=False):
    turns: int
    customer_said: str | None
    agent_said: str | None
    over: bool
    truncated: bool
    forked: bool
    """The agent's thread holds the checkpoint of a decision; the agent continues from there first."""
    given: dict[str, Any] | None
    """The agent's first input, instead of the customer's opening."""
    waits_for: Any
    """What the agent asked, if the customer cannot answer it."""
    output: Any
    """What the agent's graph returned last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationContext:
    customer: CustomerSimulator
    agent: Any
    """The agent's graph, compiled with a checkpointer; or another LangChain runnable, which cannot be interrupted."""
    agent_context: Any
    """The context of its runs, or None."""
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
    """The agent takes its turn; the customer answers what it asks meanwhile."""
    agent_run = runtime.context
    inner: RunnableConfig = {
        "configurable": {"thread_id": agent_run.thread},
        "recursion_limit": agent_run.step_limit,
        "callbacks": get_config().get("callbacks"),
    }
    send: Any = {"messages": [HumanMessage(state.get("customer_said") or "")]}
    if state.get("given") is not None:
        send = state.get("given")
    elif state.get("forked"):
        send = None
    options: dict[str, Any] = {}
    if isinstance(agent_run.agent, Pregel):
        options["durability"] = "sync" if agent_run.forkable else "exit"
        if agent_run.agent_context is not None:
            options["context"] = agent_run.agent_context
    begun: ConversationState = {"forked": False, "given": None}
    for _ in range(MAX_ANSWERS):
        output = await agent_run.agent.ainvoke(send, inner, **options)
        waiting = output.get("__interrupt__") if isinstance(output, dict) else None
        if not waiting:
            break
        answers = {}
        for interrupt in waiting:
            answer = await answer_to(agent_run.customer, interrupt.value)
            if answer is None:
                return {**begun, "over": True, "waits_for": interrupt.value, "output": output}
            answers[interrupt.id] = answer.value
        send = Command(resume=answers)
    else:
        return {**begun, "over": True, "truncated": True, "output": output}
    messages = output.get("messages") if isinstance(output, dict) else None
    if not isinstance(messages, list) or not messages:  # it has not spoken to anybody
        return {**begun, "over": True, "output": output}
    last = messages[-1]
    text = last.text if isinstance(last, AIMessage) else ""
    over = output.get("handed_off") is not None
    return {**begun, "agent_said": text, "over": over, "output": output}


def ending(result: RunResult) -> dict[str, Any]:
    """Status and error of an episode, for its trace."""
    if result.state.get("truncated"):
        return {"status": "truncated", "error": result.error}
    question = result.state.get("waits_for")
    if question is not None:
        reason = f"the scenario's customer cannot answer what the graph asks: {str(question)[:300]}"
        return {"status": "waiting", "error": reason}
    return {"status": result.status, "error": result.error}


def build() -> CompiledStateGraph[
    ConversationState, ConversationContext, ConversationState, ConversationState
]:
    """Compile the conversation graph."""
    graph = StateGraph(ConversationState, context_schema=ConversationContext)
    graph.add_node("customer", customer)
    graph.add_node("agent", agent)
    graph.add_conditional_edges(
        START,
        lambda state: "agent" if state.get("forked") or state.get("given") else "customer",
        ["agent", "customer"],
    )
    graph.add_conditional_edges("customer", _over("agent"), ["agent", END])
    graph.add_conditional_edges("agent", _over("customer"), ["customer", END])
    return graph.compile(name="conversation")


@functools.cache
def compiled() -> CompiledStateGraph[
    ConversationState, ConversationContext, ConversationState, ConversationState
]:
    """The graph, compiled once for all episodes."""
    return build()


def _over(otherwise: str) -> Any:
    def route(state: ConversationState) -> str:
        return END if state.get("over") else otherwise

    return route
