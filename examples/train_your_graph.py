"""A LangGraph graph that is not commerce, improved on-policy: it learns to answer briefly.

stateset-agents train --graph examples.train_your_graph:graph --reward examples.train_your_graph:reward \\
    --scenarios examples/questions.json --steps 6 --groups 4
"""

import json
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph

from stateset_agents.trace import Trace


class State(TypedDict, total=False):
    question: str
    answer: str


def graph(policy: BaseChatModel) -> Any:
    """One node that asks the policy. Yours may have any number; each call is recorded by node."""

    async def write(state: State) -> State:
        reply = await policy.ainvoke([("user", state["question"])])
        return {"answer": reply.text}

    builder = StateGraph(State)
    builder.add_node("write", write)
    builder.add_edge(START, "write")
    builder.add_edge("write", END)
    return builder.compile()


def reward(trace: Trace) -> float:
    """1 for an answer that asks back in at most eight words; less for longer or for a statement."""
    answer = str((trace.output or {}).get("answer", ""))
    words = len(answer.split())
    return float("?" in answer) * 0.5 + 0.5 * float(0 < words <= 8)


def questions() -> list[dict[str, Any]]:
    """The scenarios: the state each run starts from."""
    loaded: list[dict[str, Any]] = json.loads(
        Path(__file__).with_name("questions.json").read_text()
    )
    return loaded
