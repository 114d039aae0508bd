"""A graph of two nodes that are asked the very same and are paid for the opposite; for tests, and for what they start."""

from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph

from stateset_agents.trace import Trace

PROMPT = "Tell me about the weather."


class State(TypedDict, total=False):
    question: str
    first: str
    second: str


def graph(policy: BaseChatModel) -> Any:
    """`ask`, then `tell`; neither sees the other's words."""

    async def ask(state: State) -> State:
        return {"first": (await policy.ainvoke([("user", state["question"])])).text}

    async def tell(state: State) -> State:
        return {"second": (await policy.ainvoke([("user", state["question"])])).text}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("tell", tell)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "tell")
    builder.add_edge("tell", END)
    return builder.compile()


def asks(trace: Trace) -> float:
    """1 where `ask` began with a question."""
    return float(str((trace.output or {}).get("first", "")).startswith("What"))


def tells(trace: Trace) -> float:
    """1 where `tell` began with a promise."""
    return float(str((trace.output or {}).get("second", "")).startswith("Sure"))


def both(trace: Trace) -> float:
    """What the run as a whole is measured by."""
    return (asks(trace) + tells(trace)) / 2


def brief(trace: Trace) -> float:
    """More for fewer words."""
    return 1 / (1 + len(trace.agent_text.split()))


def same(trace: Trace) -> float:
    """Nothing to learn from."""
    return 0.5


def broken(trace: Trace) -> float:
    """No number."""
    return float("nan")
