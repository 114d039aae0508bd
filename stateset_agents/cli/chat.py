"""`chat`: talk to a graph in the terminal and see every call and every tool as it happens."""

import json
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from rich.console import Console
from rich.text import Text

from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.served_graphs import AnyGraph, ServedGraph
from stateset_agents.nodes.answers import Answer, acts_of, decided, kind_of, words_of
from stateset_agents.scenario import Scenario
from stateset_agents.server.served import Wishes

THREAD = "chat"
OURS = ("policy", "tools", "confirm", "handoff")
"""Nodes of our agents."""


async def chat_loop(
    config: JobConfig, adapter: Path | None, graph: AnyGraph, *, temperature: float, max_tokens: int,
    scenario: Scenario | None = None,
) -> None:  # fmt: skip
    """Read lines until an empty one or the end of input. `scenario`: the customer that you play."""
    console = Console(highlight=False)
    shop = graph.shop if isinstance(graph, ServedGraph) else None
    before = shop.changes() if shop is not None else ()
    with tempfile.TemporaryDirectory() as folder:
        async with served_policy(config, adapter, Path(folder), print, exact=False) as server:
            policy = server.policy(exact=False, retry_seconds=0).model_copy(
                update={"temperature": temperature, "max_tokens": max_tokens}
            )
            served = graph.served(policy, None)
            if scenario is not None:
                _introduce(console, scenario)
            console.print("An empty line ends the conversation.")
            compiled, context = served.begin(InMemorySaver(), THREAD, Wishes())
            thread: Any = {
                "configurable": {"thread_id": THREAD},
                "recursion_limit": served.step_limit,
            }
            while text := _read(console, "you      "):
                send: Any = {"messages": [HumanMessage(text)]}
                while send is not None:
                    pending: Any = ()
                    update: Any
                    async for _, update in compiled.astream(
                        send, thread, context=context, subgraphs=True
                    ):
                        pending = update.get("__interrupt__", pending)
                        for node, state in update.items():
                            if isinstance(state, dict):
                                _show(console, "agent" if node in OURS else node, state)
                    send = _answers(console, pending) if pending else None
    for change in shop.changes() if shop is not None else ():
        if change not in before:
            console.print(
                Text(f"changed  {change.table} {change.key} {change.column} = {change.value}")
            )


def _introduce(console: Console, scenario: Scenario) -> None:
    known = ", ".join(f"{name} {value}" for name, value in scenario.customer.slots.items())
    console.print(f"You are a customer. You know: {known}.", markup=False, emoji=False)
    console.print("You could start with:", Text(scenario.customer.opening, style="bold"))


def _answers(console: Console, pending: Any) -> Command[Any]:
    """Your answers to what the graph asks."""
    given = {}
    for interrupt in pending:
        answer = None
        while answer is None:
            answer = _answer(console, interrupt.value)
        given[interrupt.id] = answer.value
    return Command(resume=given)


def _answer(console: Console, question: Any) -> Answer | None:
    """Your answer, or None if the graph does not take it."""
    words, kind = words_of(question), kind_of(question)
    if kind == "question":
        return Answer(_read(console, f"asks     {words}\nyou      "))
    if kind == "other":
        text = _read(console, f"asks     {words or question}\nanswer   (JSON or text) ")
        try:
            return Answer(json.loads(text))
        except ValueError:
            return Answer(text)
    verb = "approve " if kind == "approval" else "confirm "
    agreed = _read(console, f"{verb} {words}? (y/n) ").lower() in ("y", "yes")
    answer = decided(question, [agreed] * len(acts_of(question)))
    if answer is None:
        console.print(f"asks     the graph takes no {'yes' if agreed else 'no'} to this")
    return answer


def _read(console: Console, prompt: str) -> str:
    try:
        return console.input(prompt, markup=False).strip()
    except EOFError:
        return ""


def _show(console: Console, speaker: str, state: dict[str, Any]) -> None:
    """What a node wrote: words, calls and the answers of tools."""
    attempts = [a for a in state.get("tool_calls") or [] if isinstance(a, dict)]
    messages = state.get("messages")
    for message in messages if isinstance(messages, list) else [messages]:
        if isinstance(message, AIMessage):
            if message.text:
                console.print(f"{speaker:<8} {message.text}", markup=False)
            for call in message.tool_calls:
                console.print(f"calls    {call['name']} {call['args']}", style="cyan", markup=False)
        elif isinstance(message, ToolMessage) and not attempts:
            style = "red" if message.status == "error" else "dim"
            console.print(f"tool     {message.text}", style=style, markup=False)
    for attempt in attempts:
        style = "dim" if attempt["status"] == "done" else "red"
        console.print(f"tool     {attempt['result']}", style=style, markup=False)
