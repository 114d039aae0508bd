"""Graphs as other people write them: six patterns, with a scripted model in them."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
)
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

Answer = Callable[[Sequence[BaseMessage]], AIMessage | str]
"""What a scripted model says, of what it is sent."""


class Scripted(BaseChatModel):
    """A model that answers by rule, so that a run can be repeated."""

    answer: Answer

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(part) for part in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer = self.answer(messages)
        message = answer if isinstance(answer, AIMessage) else AIMessage(answer)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        answer = self.answer(messages)
        text = answer if isinstance(answer, str) else answer.text
        calls = [] if isinstance(answer, str) else answer.tool_calls
        for number, word in enumerate(text.split(" ")):
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=word if number == 0 else f" {word}")
            )
        if calls:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_calls=calls))


def called(name: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call-{name}"}])


@tool
def stock(sku: str) -> str:
    """How many there are."""
    return f"7 of {sku}"


@dataclass
class Pattern:
    """A graph, what it is started with (again, if it waits), and what a record of it must hold."""

    graph: Any
    inputs: list[Any]
    nodes: dict[str, int]
    """Model calls by node."""
    tools: tuple[str, ...] = ()
    status: str = "completed"


def react() -> Pattern:
    """ReAct with ToolNode."""

    def answer(messages: Sequence[BaseMessage]) -> AIMessage | str:
        return (
            "There are 7." if isinstance(messages[-1], ToolMessage) else called("stock", sku="P1")
        )

    model = Scripted(answer=answer).bind_tools([stock])

    def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode([stock], handle_tool_errors=True))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return Pattern(graph.compile(), [_human("How many P1?")], {"agent": 2}, ("stock",))


def supervisor() -> Pattern:
    """A supervisor that hands over to workers, each a graph of its own."""

    def worker(name: str) -> Any:
        model = Scripted(answer=lambda messages: f"{name} did it")
        graph = StateGraph(MessagesState)

        async def work(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph.add_node("work", work)
        graph.add_edge(START, "work")
        return graph.compile(name=name)

    def choose(messages: Sequence[BaseMessage]) -> str:
        done = {m.text.split()[0] for m in messages if isinstance(m, AIMessage)}
        return next((name for name in ("billing", "shipping") if name not in done), "done")

    boss = Scripted(answer=choose)

    async def route(state: MessagesState) -> Command[Literal["billing", "shipping", "__end__"]]:
        to: Any = (await boss.ainvoke(state["messages"])).text
        return Command(goto=END if to == "done" else to)

    graph = StateGraph(MessagesState)
    graph.add_node("supervisor", route)
    for name in ("billing", "shipping"):
        graph.add_node(name, worker(name))
        graph.add_edge(name, "supervisor")
    graph.add_edge(START, "supervisor")
    return Pattern(graph.compile(), [_human("go")], {"supervisor": 3, "work": 2})


class Topics(TypedDict, total=False):
    topics: list[str]
    topic: str
    written: Annotated[list[str], operator.add]
    best: str


def map_reduce() -> Pattern:
    """Drafts in parallel by Send, then one choice."""
    model = Scripted(answer=lambda messages: f"on {messages[-1].text}")

    async def draft(state: Topics) -> Topics:
        return {"written": [(await model.ainvoke(state["topic"])).text]}

    async def pick(state: Topics) -> Topics:
        return {"best": (await model.ainvoke(" / ".join(sorted(state["written"])))).text}

    graph = StateGraph(Topics)
    graph.add_node("draft", draft)
    graph.add_node("pick", pick)
    graph.add_conditional_edges(START, lambda s: [Send("draft", {"topic": t}) for t in s["topics"]])
    graph.add_edge("draft", "pick")
    return Pattern(graph.compile(), [{"topics": ["a", "b", "c", "d"]}], {"draft": 4, "pick": 1})


class Plan(BaseModel):
    """What to do."""

    steps: list[str]


class Planned(TypedDict, total=False):
    goal: str
    steps: list[str]
    results: Annotated[list[str], operator.add]


def plan_and_execute() -> Pattern:
    """A structured plan, then a call for each step."""
    planner = Scripted(answer=lambda messages: called("Plan", steps=["look", "buy"]))
    doer = Scripted(answer=lambda messages: f"did {messages[-1].text}")
    structured = planner.with_structured_output(Plan)

    async def plan(state: Planned) -> Planned:
        made = await structured.ainvoke(state["goal"])
        assert isinstance(made, Plan)
        return {"steps": made.steps}

    async def execute(state: Planned) -> Planned:
        step = state["steps"][len(state.get("results", []))]
        return {"results": [(await doer.ainvoke(step)).text]}

    def more(state: Planned) -> str:
        return "execute" if len(state["results"]) < len(state["steps"]) else END

    graph = StateGraph(Planned)
    graph.add_node("plan", plan)
    graph.add_node("execute", execute)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "execute")
    graph.add_conditional_edges("execute", more)
    return Pattern(graph.compile(), [{"goal": "a lamp"}], {"plan": 1, "execute": 2})


def reflection() -> Pattern:
    """Write, criticise, write again."""
    writer = Scripted(answer=lambda messages: f"draft {len(messages)}")
    critic = Scripted(answer=lambda messages: "fine" if "3" in messages[-1].text else "again")

    def write(state: MessagesState) -> dict[str, Any]:
        return {"messages": [writer.invoke(state["messages"])]}

    def criticise(state: MessagesState) -> dict[str, Any]:
        return {"messages": [HumanMessage(critic.invoke(state["messages"]).text)]}

    graph = StateGraph(MessagesState)
    graph.add_node("write", write)
    graph.add_node("criticise", criticise)
    graph.add_edge(START, "write")
    graph.add_edge("write", "criticise")
    graph.add_conditional_edges(
        "criticise", lambda s: END if s["messages"][-1].text == "fine" else "write"
    )
    return Pattern(graph.compile(), [_human("write")], {"write": 2, "criticise": 2})


def asks_first() -> Pattern:
    """Stops for a person's word, and goes on with it."""
    model = Scripted(answer=lambda messages: f"after {messages[-1].text}")

    async def ask(state: MessagesState) -> dict[str, Any]:
        answer = interrupt({"question": "Shall I?"})
        return {"messages": [HumanMessage(answer)]}

    async def act(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", act)
    graph.add_node("ask", ask)
    graph.add_node("act", act)
    graph.add_edge(START, "think")
    graph.add_edge("think", "ask")
    graph.add_edge("ask", "act")
    compiled = graph.compile(checkpointer=InMemorySaver())
    return Pattern(compiled, [_human("do it"), Command(resume="yes")], {"think": 1, "act": 1})


def _human(text: str) -> Any:
    return {"messages": [HumanMessage(text, id="h")]}


PATTERNS = [react, supervisor, map_reduce, plan_and_execute, reflection, asks_first]
