"""The shop over MCP, with the real client: the same rules, and the user's word before a write."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_mcp_adapters.tools import load_mcp_tools
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client

from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.toolset import ALL_TOOLS

SERVER = StdioServerParameters(
    command=sys.executable, args=["-m", "stateset_agents", "mcp", "--shop-seed", "3"]
)


def a_pending_order() -> Row:
    order = generate(3, "train").first(
        "SELECT orders.id, customers.zip FROM orders JOIN customers ON customer_id = customers.id "
        "WHERE status = 'pending' ORDER BY orders.id"
    )
    assert order is not None
    return order


@asynccontextmanager
async def client(says: bool | None) -> AsyncIterator[tuple[ClientSession, list[str]]]:
    """A client whose user agrees, refuses, or (None) cannot be asked; and what they were asked."""
    request: list[str] = []

    async def answer(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        request.append(params.message)
        return types.ElicitResult(action="accept", content={"confirmed": bool(says)})

    callback = None if says is None else answer
    async with (
        stdio_client(SERVER) as (read, write),
        ClientSession(read, write, elicitation_callback=callback) as session,
    ):
        await session.initialize()
        yield session, request


async def call(session: ClientSession, name: str, **arguments: Any) -> dict[str, Any]:
    answer = await session.call_tool(name, arguments)
    (content,) = answer.content
    assert isinstance(content, types.TextContent)
    result: dict[str, Any] = json.loads(content.text)
    assert bool(answer.isError) == ("error" in result)
    return result


async def test_tools_are_offered_with_their_schemas_and_reads_are_marked() -> None:
    async with client(says=True) as (session, _):
        offered = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(offered) == {tool.name for tool in ALL_TOOLS}
        assert offered["get_order"].inputSchema["required"] == ["order_id"]
        for tool in ALL_TOOLS:
            annotations = offered[tool.name].annotations
            assert annotations is not None
            assert annotations.readOnlyHint == (not tool.confirm)


async def test_a_write_is_made_when_the_user_agrees_and_not_otherwise() -> None:
    order = a_pending_order()
    for says, expected in ((True, "cancelled"), (False, "declined"), (None, "not_confirmed")):
        async with client(says=says) as (session, request):
            early = await call(session, "get_order", order_id=order["id"])
            assert early["error"] == "not_verified"
            await call(session, "verify_identity", order_id=order["id"], zip=order["zip"])
            result = await call(session, "cancel_order", order_id=order["id"])
            assert expected in result or result.get("error") == expected
            assert request == ([] if says is None else [f"cancel order: order_id {order['id']}?"])
            status = (await call(session, "get_order", order_id=order["id"]))["status"]
            assert status == ("cancelled" if says else "pending")


async def test_langchains_adapter_makes_tools_of_it() -> None:
    order = a_pending_order()
    async with client(says=True) as (session, _):
        tools = {tool.name: tool for tool in await load_mcp_tools(session)}
        answer = await tools["verify_identity"].ainvoke(
            {"order_id": order["id"], "zip": order["zip"]}
        )
        assert "verified" in str(answer)
