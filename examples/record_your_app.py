"""An app that is not ours: a LangGraph graph that files letters. One line records it; its traces train its model.

python -m examples.record_your_app                    # serves the bundled model, runs the app, then trains on its traces
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from stateset_agents import Trace, TraceStore, connect, record
from stateset_agents.policy.transport import close_connections
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.server.engine.process import launch
from stateset_agents.server.options import ServerOptions
from stateset_agents.server.supervisor import free_port, supervised
from stateset_agents.trace import Sampling

LETTERS = [
    "Where is my order?",
    "I want my money back.",
    "Please cancel it.",
    "Is the lamp in stock?",
]


def filed(trace: Trace) -> float:
    """The app's own measure: short answers are easy to file."""
    return 1.0 / (1.0 + trace.tokens_sampled / 8)


def app(model: Any) -> Any:
    """Somebody's graph: it answers, then shortens its answer."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile()


async def use(store: TraceStore, folder: Path) -> None:
    """The app at work: every letter some times, at a temperature at which answers differ."""
    async with supervised(
        launch(str(SEED_POLICY), ServerOptions(port=free_port())), folder / "engine.log"
    ) as engine:
        url = engine.url
        model = connect(url, "policy").sampling(Sampling(version="policy", max_tokens=24, seed=1))
        graph = record(app(model), store)  # the one line
        await asyncio.gather(
            *(
                graph.ainvoke({"messages": [HumanMessage(letter)]})
                for letter in LETTERS
                for _ in range(8)
            )
        )
        await close_connections()


def main() -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        with TraceStore(folder / "traces.db") as store:
            asyncio.run(use(store, folder))
        command = [sys.executable, "-m", "stateset_agents"]
        subprocess.run([*command, "traces", "list", str(folder), "--limit", "4"], check=True)
        subprocess.run(
            [*command, "train", "--from-traces", str(folder), "--reward", "examples.record_your_app:filed",
             "--groups", "2", "--out", str(folder / "runs")], check=True,
        )  # fmt: skip
        subprocess.run([*command, "traces", "verify", str(folder)], check=True)


if __name__ == "__main__":
    main()
