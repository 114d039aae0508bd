"""Another shop over MCP: its tools behind our two steps."""

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_mcp_adapters.callbacks import CallbackContext, Callbacks
from langchain_mcp_adapters.sessions import Connection, create_session
from mcp import ClientSession, McpError, types

from stateset_agents.tools.backend import Foreign, Offer
from stateset_agents.tools.executor import Outcome, refused
from stateset_agents.tools.tool import Session

TIMEOUT = datetime.timedelta(seconds=60)
KEY = "idempotency_key"
"""The field of a write's key in the request's metadata."""


class McpBackend(Foreign):
    """Tools of an MCP server. A tool that is not marked as read-only needs the customer's confirmation. The backend cannot be
    cloned or rolled back and does not report changes: enough to serve, not to train on. The server keeps the verified customer
    as long as the connection."""

    rules = None  # its own server checks them

    def __init__(self) -> None:
        self.offers = {}
        self._client: ClientSession | None = None
        self._one_call = asyncio.Lock()
        self._agreed = False

    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        assert self._client is not None
        # One call at a time, so that what the server asks meanwhile is asked about this very call.
        async with self._one_call:
            self._agreed = key is not None
            try:
                answer = await self._client.call_tool(
                    name, arguments, read_timeout_seconds=TIMEOUT, meta={KEY: key} if key else None
                )
            except McpError as error:
                return refused(session, "tool_failed", str(error)[:200])
            finally:
                self._agreed = False
        text = "\n".join(
            part.text for part in answer.content if isinstance(part, types.TextContent)
        )
        result = _read(text)
        if answer.isError:
            shown = result if "error" in result else {"error": "tool_error", "help": text[:200]}
            return Outcome(status="invalid", result=shown, session=session)
        return Outcome(status="done", result=result, session=session)

    async def _elicited(
        self, mcp_context: Any, params: types.ElicitRequestParams, context: Any
    ) -> types.ElicitResult:
        """Answer the server's question for confirmation: yes, if it is the confirmed call."""
        if self._agreed:
            return types.ElicitResult(action="accept", content={"confirmed": True})
        return types.ElicitResult(action="decline")


@asynccontextmanager
async def mcp_backend(connection: Connection) -> AsyncIterator[McpBackend]:
    """A backend over a connection as langchain-mcp-adapters describes it, such as
    `{"transport": "stdio", "command": "stateset-agents", "args": ["mcp"]}`."""
    backend = McpBackend()
    callbacks = Callbacks(on_elicitation=backend._elicited).to_mcp_format(
        context=CallbackContext(server_name="shop")
    )
    async with create_session(connection, mcp_callbacks=callbacks) as client:
        await client.initialize()
        backend._client = client
        tools, cursor = [], None
        while True:
            page = await client.list_tools(cursor)
            tools += page.tools
            cursor = page.nextCursor
            if cursor is None:
                break
        backend.offers = {tool.name: _offer(tool) for tool in tools}
        yield backend


def _offer(tool: types.Tool) -> Offer:
    reads = tool.annotations is not None and tool.annotations.readOnlyHint is True
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.inputSchema,
    }
    return Offer(schema={"type": "function", "function": function}, writes=not reads)


def _read(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"text": text}
