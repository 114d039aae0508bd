"""A graph, rewards and scenarios as somebody else would write them."""

from typing import Any

from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from stateset_agents.trace import Trace


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def talker(model: Any) -> Any:
    """Answers, without tools."""
    return _compiled(model, [])


def helper(model: Any) -> Any:
    """Answers, with a tool that nobody has to call."""
    return _compiled(model, [weather])


def broken(model: Any) -> Any:
    """Has a bug."""

    def write(state: MessagesState) -> MessagesState:
        raise ValueError("my own bug")

    return StateGraph(MessagesState).add_node("write", write).add_edge(START, "write").compile()


def _compiled(model: Any, tools: list[Any]) -> Any:
    bound = model.bind_tools(tools) if tools else model

    async def write(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("write", write).add_edge(START, "write")
    if tools:
        graph.add_node("tools", ToolNode(tools)).add_edge("tools", "write")
        graph.add_conditional_edges("write", tools_condition)
    else:
        graph.add_edge("write", END)
    return graph.compile()


def no_reward(trace: Trace) -> None:
    """Scores nothing."""


def same_reward(trace: Trace) -> float:
    """Tells nothing apart."""
    return 0.5


def zero_reward(trace: Trace) -> float:
    """Nothing is good enough."""
    return 0.0
