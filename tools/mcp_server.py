"""The shop's tools as an MCP server, under the same rules as for agents. The client's user is asked to confirm each write (MCP
elicitation). A client that cannot ask is refused, like every unconfirmed write."""

import json
import uuid
import weakref
from typing import Any

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.stdio import stdio_server

from stateset_agents.tools.executor import Executor, Outcome
from stateset_agents.tools.tool import Session

_AGREE = {
    "type": "object",
    "properties": {"confirmed": {"type": "boolean", "title": "Do it"}},
    "required": ["confirmed"],
}
_CAN_ASK = types.ClientCapabilities(elicitation=types.ElicitationCapability())


def shop_server(executor: Executor, *, customer: str = "") -> "Server[Any, Any]":
    """A server of the executor's tools. Each client is a separate conversation with its own verification; `customer` is the
    signed-in customer, if any."""
    server: Server[Any, Any] = Server("stateset-shop")
    sessions: weakref.WeakKeyDictionary[ServerSession, tuple[str, Session]] = (
        weakref.WeakKeyDictionary()
    )

    @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator]
    async def tools() -> list[types.Tool]:
        return [
            types.Tool(
                name=tool.name,
                description=tool.description,
                inputSchema=tool.schema()["function"]["parameters"],
                annotations=types.ToolAnnotations(readOnlyHint=not tool.confirm),
            )
            for tool in executor.tools.values()
        ]

    # The executor checks arguments itself, so that a wrong attempt leaves its row in the audit log too.
    @server.call_tool(validate_input=False)  # type: ignore[untyped-decorator]
    async def call(name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        request = server.request_context
        new = (uuid.uuid4().hex, Session(customer=customer))
        thread, session = sessions.setdefault(request.session, new)
        sent = (request.meta.model_extra or {}).get("idempotency_key") if request.meta else None
        key = f"mcp/{thread}/{sent or request.request_id}"
        outcome = executor.made(session, name, arguments, key=key) if sent else None
        outcome = outcome or executor.propose(session, name, arguments)
        if outcome.status == "proposed":
            outcome = await _put_to_user(request.session, executor, session, name, arguments, key)
        if (
            outcome.session != session
        ):  # calls may overlap: an older one must not undo what came after
            sessions[request.session] = (thread, outcome.session)
        text = types.TextContent(type="text", text=json.dumps(outcome.result))
        return types.CallToolResult(content=[text], isError=outcome.status != "done")

    return server


async def _put_to_user(
    client: ServerSession,
    executor: Executor,
    session: Session,
    name: str,
    arguments: dict[str, Any],
    key: str,
) -> Outcome:
    if not client.check_client_capability(_CAN_ASK):
        return executor.commit(session, name, arguments, confirmed=False, key=key)
    details = ", ".join(f"{field} {value}" for field, value in arguments.items())
    answer = await client.elicit(f"{name.replace('_', ' ')}: {details}?", _AGREE)
    if answer.action == "accept" and (answer.content or {}).get("confirmed") is True:
        return executor.commit(session, name, arguments, confirmed=True, key=key)
    return executor.decline(session, name, arguments)


async def serve_stdio(executor: Executor, *, customer: str = "") -> None:
    """Answer one client over standard input and output until it disconnects."""
    server = shop_server(executor, customer=customer)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
