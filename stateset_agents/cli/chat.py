"""`chat`: play a customer of the shop in the terminal and see every tool call as it happens."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from rich.console import Console
from rich.text import Text

from stateset_agents.graphs import service
from stateset_agents.jobs.config import JobConfig
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.registry import rules_of
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.tools.shop.generate import generate
from stateset_agents.trace import Sampling


async def chat_loop(
    config: JobConfig, adapter: Path | None, *, seed: int, temperature: float
) -> None:
    """Read lines until an empty one or the end of input."""
    console = Console(highlight=False)
    scenario = next(itertools.islice(scenarios(seed=seed, split="development"), seed % 5, None))
    shop = generate(scenario.shop_seed, "development").clone()
    with tempfile.TemporaryDirectory() as folder:
        async with served_policy(config, adapter, Path(folder), print, exact=False) as server:
            policy = server.policy(exact=False, retry_seconds=0).sampling(
                Sampling(version=server.name, temperature=temperature)
            )
            graph = service.build(InMemorySaver())
            context = service.context(
                policy, service.over(shop, rules_of(config.rules)), thread="chat"
            )
            thread: Any = {
                "configurable": {"thread_id": "chat"},
                "recursion_limit": service.STEP_LIMIT,
            }
            known = ", ".join(f"{name} {value}" for name, value in scenario.customer.slots.items())
            console.print(f"You are a customer. You know: {known}.", markup=False, emoji=False)
            console.print("You could start with:", Text(scenario.customer.opening, style="bold"))
            console.print("An empty line ends the conversation.")
            while text := _read(console, "you      "):
                send: Any = {"messages": [HumanMessage(text)]}
                while send is not None:
                    write = None
                    async for update in graph.astream(send, thread, context=context):
                        if "__interrupt__" in update:
                            write = update["__interrupt__"][0].value
                        for state in update.values():
                            if isinstance(state, dict):
                                _show(console, state)
                    send = None
                    if write is not None:
                        about = write.get("summary") or f"{write['tool']} {write['arguments']}"
                        question = f"confirm  {about}? (y/n) "
                        agreed = _read(console, question).lower() in ("y", "yes")
                        send = Command(resume={"confirmed": agreed})
            for change in shop.changes():
                console.print(
                    Text(f"changed  {change.table} {change.key} {change.column} = {change.value}")
                )


def _read(console: Console, prompt: str) -> str:
    try:
        return console.input(prompt, markup=False).strip()
    except EOFError:
        return ""


def _show(console: Console, state: dict[str, Any]) -> None:
    for message in state.get("messages") or []:
        if isinstance(message, AIMessage):
            if message.text:
                console.print(f"agent    {message.text}", markup=False)
            for call in message.tool_calls:
                console.print(f"calls    {call['name']} {call['args']}", style="cyan", markup=False)
    for attempt in state.get("tool_calls") or []:
        style = "dim" if attempt["status"] == "done" else "red"
        console.print(f"tool     {attempt['result']}", style=style, markup=False)
