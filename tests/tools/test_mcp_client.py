"""MCP servers of other people: they die, answer with structure, mark nothing, and name tools as they like."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from stateset_agents import build_graph
from stateset_agents.errors import BadInput
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act
from stateset_agents.tools.mcp_client import McpTools, mcp_backend
from stateset_agents.tools.tool import Session

SERVER = '''
import os, pathlib, sys
from typing import Any
from mcp.server.fastmcp import FastMCP

log = pathlib.Path(sys.argv[1])
server = FastMCP("odd")

def note(line):
    with log.open("a") as file:
        file.write(line + "\\n")

@server.tool(name="orders.get")
def get(order: str) -> dict[str, Any]:
    """An order."""
    note(f"get {order}")
    return {"order": order, "total": 12.5, "name": "M\\u00fcller"}

@server.tool(name="orders.dies")
def dies(order: str) -> str:
    """Ends the server, the first time."""
    note(f"dies {order}")
    if log.read_text().count("dies") < int(sys.argv[2]):
        os._exit(1)
    return "alive"

@server.tool()
def refund(order: str, idempotency_key: str, customer_id: str) -> dict[str, Any]:
    """Pay back."""
    note(f"refund {order} {idempotency_key} {customer_id}")
    return {"ok": order != "W404", "reason": "no such order"}

@server.tool()
def cut(order: str) -> str:
    """Pays back and is gone."""
    note(f"cut {order}")
    os._exit(1)

@server.tool()
def raises(order: str) -> str:
    """Raises."""
    raise ValueError("the till is closed")

server.run()
'''
ANN = Session(customer="C7", call="call-1")


@pytest.fixture
def connection(tmp_path: Path) -> Any:
    return at(tmp_path, deaths=2)


def at(folder: Path, *, deaths: int) -> Any:
    script, log = folder / "server.py", folder / "log"
    script.write_text(SERVER)
    log.touch()
    return {
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(script), str(log), str(deaths)],
    }


def noted(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


TOOLS = McpTools(tools=("orders.*", "refund", "cut", "raises"), reads=("orders.*",), inject={"customer_id": "customer"})  # fmt: skip


async def test_names_schemas_and_answers_are_made_fit_and_mapped_back(
    connection: Any, tmp_path: Path
) -> None:
    async with mcp_backend(connection, TOOLS) as backend:
        assert {name: offer.writes for name, offer in backend.offers.items()} == {
            "orders_get": False, "orders_dies": False, "refund": True, "cut": True, "raises": True,
        }  # fmt: skip
        shown = backend.offers["refund"].schema["function"]["parameters"]
        assert set(shown["properties"]) == set(shown["required"]) == {"order"}
        found_order = await backend.propose(ANN, "orders_get", {"order": "W1"})
        assert found_order.result == {"order": "W1", "total": 12.5, "name": "Müller"}
        done = await backend.commit(ANN, "refund", {"order": "W1"}, confirmed=True, key="k1")
        again = await backend.commit(ANN, "refund", {"order": "W1"}, confirmed=True, key="k1")
        assert (done.status, again.status) == ("done", "done")
    assert noted(tmp_path) == ["get W1", "refund W1 k1 C7"]


async def test_what_says_that_it_failed_is_not_done(connection: Any) -> None:
    async with mcp_backend(connection, TOOLS) as backend:
        no = await backend.commit(ANN, "refund", {"order": "W404"}, confirmed=True, key="k1")
        assert (no.status, no.result["reason"]) == ("invalid", "no such order")
        error = await backend.commit(ANN, "raises", {"order": "W1"}, confirmed=True, key="k2")
        assert error.status == "invalid"
        assert "the till is closed" in str(error.result)


async def test_a_server_that_dies_is_started_again_for_a_read_and_no_write_is_made_twice(
    connection: Any, tmp_path: Path
) -> None:
    async with mcp_backend(connection, TOOLS) as backend:
        outcome = await backend.propose(ANN, "orders_dies", {"order": "W1"})
        assert outcome.result in ({"result": "alive"}, {"text": "alive"})
        lost = await backend.commit(ANN, "cut", {"order": "W2"}, confirmed=True, key="k")
        assert (lost.status, lost.result["error"]) == ("invalid", "unknown_outcome")
        assert (await backend.propose(ANN, "orders_get", {"order": "W3"})).status == "done"
    assert [line for line in noted(tmp_path) if line.startswith("cut")] == ["cut W2"]


async def test_from_any_task_and_after_a_death_a_person_takes_over(tmp_path: Path) -> None:
    """The server dies whenever it is asked: the graph says so, and raises nothing."""
    plan = (Act(tool="orders_dies", arguments={"order": "W1"}), Act(say="Done."))
    async with mcp_backend(at(tmp_path, deaths=99), TOOLS) as backend:
        graph = build_graph(
            "odd", prompt="Help.", policy=Oracle(plan=plan), backend=backend, checkpointer=InMemorySaver()
        )  # fmt: skip
        config: Any = {"configurable": {"thread_id": "1"}}
        end = await asyncio.create_task(
            graph.ainvoke({"messages": [HumanMessage("where is it?")]}, config)
        )
    assert "the MCP server is gone" in end["handed_off"]["reason"]
    assert "colleague" in end["messages"][-1].text


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([sys.executable, "-c", "raise SystemExit('no licence')"], "an MCP server that answers"),
        (["/no/such/program"], "an MCP server that answers"),
    ],
)
async def test_a_server_that_cannot_start_is_named_in_one_line(
    command: list[str], reason: str
) -> None:
    server: Any = {"transport": "stdio", "command": command[0], "args": command[1:]}
    with pytest.raises(BadInput, match=reason):
        async with mcp_backend(server):
            pass


async def test_patterns_that_name_nothing_are_refused(connection: Any) -> None:
    with pytest.raises(BadInput, match="'look_\\*' to name a tool"):
        async with mcp_backend(connection, McpTools(reads=("look_*",))):
            pass
    with pytest.raises(BadInput, match="tools that match fly"):
        async with mcp_backend(connection, McpTools(tools=("fly",))):
            pass
