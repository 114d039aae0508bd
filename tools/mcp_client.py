"""Another shop over MCP: its tools behind our two steps."""

import asyncio
import contextlib
import datetime
import fnmatch
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
from langchain_mcp_adapters.callbacks import CallbackContext, Callbacks
from langchain_mcp_adapters.sessions import Connection, create_session
from mcp import ClientSession, McpError, types

from stateset_agents.errors import BadInput
from stateset_agents.plain import plain
from stateset_agents.tools.backend import Foreign, Offer
from stateset_agents.tools.executor import Outcome, refused
from stateset_agents.tools.host import json_object, says_failed
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.tool import Session

TIMEOUT = datetime.timedelta(seconds=60)
KEY = "idempotency_key"
"""The field of a write's key in the request's metadata."""
Injected = Literal["key", "customer", "call"]
"""What the backend knows of a call: a write's idempotency key, the verified customer's id, the model's call id."""
UNSURE = "It may have been done all the same: look before you try again, or escalate_to_human."
_LOST = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)
_CLOSED = ("connection closed", "session terminated")


@dataclass(frozen=True, slots=True, kw_only=True)
class McpTools:
    """Which of a server's tools are offered, and how. Patterns are those of file names, such as `get_*`.

    A tool needs the customer's confirmation unless the server marks it as read-only, or `reads` names it; `writes` decides
    against both. `inject` names arguments that the model does not see and the backend fills in; an argument called
    `idempotency_key` always is one.
    """

    tools: Sequence[str] = ("*",)
    reads: Sequence[str] = ()
    writes: Sequence[str] = ()
    inject: Mapping[str, Injected] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    """One call for the worker."""

    name: str
    arguments: dict[str, Any]
    key: str | None
    answer: "asyncio.Future[types.CallToolResult]"


class McpBackend(Foreign):
    """Tools of an MCP server. The backend cannot be cloned or rolled back and does not report changes: enough to serve, not to
    train on. The server keeps the verified customer as long as the connection.

    The connection has a task of its own, so that any task may call. If it is lost, a read is tried once more on a new one; a write
    is not: it may have been done.
    """

    rules: Sequence[Rule] | None = None
    """Default: its own server checks them."""

    def __init__(self, connection: Connection, tools: McpTools | None = None) -> None:
        self.offers = {}
        self._connection, self._chosen = connection, tools or McpTools()
        self._names: dict[str, str] = {}
        """The server's own names, by the names that models get."""
        self._hidden: dict[str, dict[str, Injected]] = {}
        """Arguments that are filled in, by tool."""
        self._calls: asyncio.Queue[_Call | None] = asyncio.Queue()
        self._agreed = False
        self._connecting = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        """Workers that end by themselves."""
        self.forgotten = False
        """The server that this conversation had spoken to is gone: what it knew has to be told again, and is, once."""
        self._worker: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Connect and list the tools. Raises BadInput if the server cannot be reached or offers none of the chosen tools."""
        await self._connect()
        if not self.offers:
            raise BadInput(
                f"Expected tools that match {', '.join(self._chosen.tools)} on the MCP server, found none."
            )
        for pattern in (*self._chosen.reads, *self._chosen.writes):
            if not any(fnmatch.fnmatch(name, pattern) for name in self._names.values()):
                raise BadInput(
                    f"Expected {pattern!r} to name a tool of the MCP server, found {', '.join(sorted(self._names.values()))}."
                )

    def fresh(self) -> "McpBackend":
        """The same tools over a connection of its own, which is made with the first call."""
        twin = McpBackend(self._connection, self._chosen)
        twin.offers, twin.rules, twin.approvals = self.offers, self.rules, self.approvals
        twin._names, twin._hidden = self._names, self._hidden
        return twin

    def leave(self) -> None:
        """Disconnect after the calls under way; the next call connects again."""
        worker, self._worker = self._worker, None
        if worker is not None and not worker.done():
            self._calls.put_nowait(None)
            self._leaving.add(worker)
            worker.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Disconnect."""
        if self._worker is not None and not self._worker.done():
            self._calls.put_nowait(None)
            await asyncio.wait({self._worker}, timeout=10)
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _connected(self) -> "asyncio.Queue[_Call | None]":
        """The queue of a worker that is alive; one is started if there is none."""
        async with self._connecting:
            if self._worker is None or self._worker.done():
                await self._connect()
            return self._calls

    async def _connect(self) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        self._calls = asyncio.Queue()
        self._worker = asyncio.create_task(self._work(self._ready, self._calls))
        await asyncio.shield(self._ready)

    async def _work(
        self, ready: "asyncio.Future[None]", calls: "asyncio.Queue[_Call | None]"
    ) -> None:
        """Hold one connection and make the calls of the queue, one at a time: what the server asks meanwhile is about that call."""
        callbacks = Callbacks(on_elicitation=self._elicited).to_mcp_format(
            context=CallbackContext(server_name="shop")
        )
        current: _Call | None = None
        try:
            async with create_session(self._connection, mcp_callbacks=callbacks) as client:
                await client.initialize()
                await self._list(client)
                ready.set_result(None)
                while (current := await calls.get()) is not None:
                    if current.answer.done():
                        continue  # nobody waits for it any more
                    self._agreed = current.key is not None
                    meta = {KEY: current.key} if current.key else None
                    try:
                        answer = await client.call_tool(
                            current.name, current.arguments, read_timeout_seconds=TIMEOUT, meta=meta
                        )
                    except McpError as error:
                        if any(words in str(error).lower() for words in _CLOSED):
                            raise ConnectionError(str(error)) from None
                        _fail(current, error)
                    except _LOST:
                        raise
                    except Exception as error:  # noqa: BLE001 (an answer that cannot be read is this call's, not the others')
                        shown = types.ErrorData(code=0, message=f"{type(error).__name__}: {error}")
                        _fail(current, McpError(shown))
                    else:
                        if not current.answer.done():
                            current.answer.set_result(answer)
                    finally:
                        self._agreed = False
        except BaseException as error:  # a group of them, with whatever a transport raises
            first = _leaf(error)
            if not ready.done():
                ready.set_exception(_cannot_start(first))
            lost = ConnectionError(f"the MCP server is gone: {type(first).__name__}: {first}")
            for call in (current, *_drained(calls)):
                if call is not None and not call.answer.done():
                    call.answer.set_exception(lost)
            if isinstance(first, asyncio.CancelledError):
                raise

    async def _list(self, client: ClientSession) -> None:
        tools, cursor = [], None
        while True:
            page = await client.list_tools(cursor)
            tools += page.tools
            cursor = page.nextCursor
            if cursor is None:
                break
        offers: dict[str, Offer] = {}
        for tool in tools:
            if not _matches(tool.name, self._chosen.tools):
                continue
            name = _callable_name(tool.name, taken=offers)
            self._names[name] = tool.name
            offers[name] = self._offer(name, tool)
        self.offers = offers

    def _offer(self, name: str, tool: types.Tool) -> Offer:
        marked = tool.annotations is not None and tool.annotations.readOnlyHint is True
        reads = (marked or _matches(tool.name, self._chosen.reads)) and not _matches(
            tool.name, self._chosen.writes
        )
        known = {KEY: "key", **self._chosen.inject}
        schema = dict(tool.inputSchema)
        properties = dict(schema.get("properties") or {})
        hidden: dict[str, Any] = {n: what for n, what in known.items() if n in properties}
        self._hidden[name] = hidden
        schema["properties"] = {n: p for n, p in properties.items() if n not in hidden}
        if "required" in schema:
            schema["required"] = [n for n in schema["required"] if n not in hidden]
        function = {"name": name, "description": tool.description or "", "parameters": schema}
        return Offer(schema={"type": "function", "function": function}, writes=not reads)

    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        if self.forgotten:
            self.forgotten = False
            return refused(
                session,
                "session_lost",
                "The shop's session was closed meanwhile. Sign in again, then repeat the call.",
            )
        values = {"key": key, "customer": session["customer"], "call": session.get("call", "")}
        filled = {n: values[what] for n, what in self._hidden[name].items() if values[what]}
        given = {**arguments, **filled}
        try:
            answer = await self._called(self._names[name], given, key)
        except McpError as error:
            if key is None:
                return refused(session, "tool_failed", str(error)[:200])
            if error.error.code == 408 or "timed out" in str(error).lower():
                return refused(session, "unknown_outcome", f"{str(error)[:200]}. {UNSURE}")
            return refused(session, "tool_failed", f"{str(error)[:200]}. {UNSURE}")
        except ConnectionError as error:
            if key is None:
                raise  # the graph waits, and then a person takes over
            logging.getLogger(__name__).error("a write of %s was cut off: %s", name, error)
            return refused(session, "unknown_outcome", f"The connection was lost. {UNSURE}")
        result, text = _read(answer)
        if answer.isError or says_failed(result):
            shown = result if says_failed(result) else {"error": "tool_error", "help": text[:500]}
            return Outcome(status="invalid", result=shown, session=session)
        return Outcome(status="done", result=result, session=session)

    async def _called(
        self, name: str, arguments: dict[str, Any], key: str | None
    ) -> types.CallToolResult:
        """Make a call; a read once more if the connection is lost."""
        for last in (False, True) if key is None else (True,):
            try:
                calls = await self._connected()
            except BadInput as error:
                raise ConnectionError(str(error)) from None
            worker = self._worker
            call = _Call(name, arguments, key, asyncio.get_running_loop().create_future())
            calls.put_nowait(call)
            if worker is not None and worker.done():
                call.answer.set_exception(ConnectionError("the MCP server is gone"))
            try:
                return await call.answer
            except ConnectionError:
                if last:
                    raise
        raise AssertionError("Expected an answer or an error of the last try.")

    async def _elicited(
        self, mcp_context: Any, params: types.ElicitRequestParams, context: Any
    ) -> types.ElicitResult:
        """Answer the server's question for confirmation: yes, if it is the confirmed call."""
        if self._agreed:
            return types.ElicitResult(action="accept", content={"confirmed": True})
        return types.ElicitResult(action="decline")


@asynccontextmanager
async def mcp_backend(
    connection: Connection, tools: McpTools | None = None
) -> AsyncIterator[McpBackend]:
    """A backend over a connection as langchain-mcp-adapters describes it, such as
    `{"transport": "stdio", "command": "stateset-agents", "args": ["mcp"]}`. Raises BadInput if the server cannot be started."""
    backend = McpBackend(connection, tools)
    try:
        await backend.start()
        yield backend
    finally:
        with contextlib.suppress(Exception):
            await backend.close()


def _fail(call: _Call, error: Exception) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _callable_name(name: str, *, taken: Mapping[str, Offer]) -> str:
    """A name that model APIs allow: letters, digits, `_` and `-`, at most 64."""
    base = re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "tool"
    made, number = base, 2
    while made in taken:
        made, number = f"{base[:60]}_{number}", number + 1
    return made


def _drained(calls: "asyncio.Queue[_Call | None]") -> list[_Call | None]:
    waiting = []
    while not calls.empty():
        waiting.append(calls.get_nowait())
    return waiting


def _leaf(error: BaseException) -> BaseException:
    """The first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _cannot_start(error: BaseException) -> BadInput:
    return BadInput(
        f"Expected an MCP server that answers, found {type(error).__name__}: {str(error)[:300]}. Look at its command or URL."
    )


def _read(answer: types.CallToolResult) -> tuple[Any, str]:
    """What a tool answered as data, and as text. Structured content is the answer where there is some."""
    parts = [p.text for p in answer.content if isinstance(p, types.TextContent)]
    others = [plain(p) for p in answer.content if not isinstance(p, types.TextContent)]
    text = "\n".join(parts)
    result: Any = answer.structuredContent
    if result is None:
        result = json_object(text)
    if result is None:
        result = {"text": text}
    return (result if not others else {**result, "content": others}), text
