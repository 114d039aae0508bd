"""An MCP server of somebody else's for the tests: a till that knows who signed in, and marks nothing. It writes to a log what it did."""

import os
import sys
from pathlib import Path
from typing import Any

from mcp.server.fastmcp import FastMCP

log = Path(sys.argv[1])
server = FastMCP("till")
state: dict[str, Any] = {"who": None, "refunded": []}


def note(line: str) -> None:
    with log.open("a") as file:
        file.write(f"{os.getpid()} {line}\n")


@server.tool()
def sign_in(name: str) -> dict[str, Any]:
    """Sign a customer in."""
    state["who"] = name
    note(f"sign_in {name}")
    return {"ok": True}


@server.tool()
def get_balance() -> dict[str, Any]:
    """What has been paid back to the customer who is signed in."""
    return {"customer": state["who"], "refunded": state["refunded"]}


@server.tool()
def pay_back(order: str, key: str) -> dict[str, Any]:
    """Pay an order back."""
    state["refunded"].append(order)
    note(f"pay_back {order} {key}")
    return {"ok": True, "order": order}


@server.tool()
def drop_everything() -> str:
    """Not for agents."""
    note("drop_everything")
    return "done"


if __name__ == "__main__":
    server.run()
