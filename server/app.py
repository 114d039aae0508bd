"""The endpoint: a stateful graph behind OpenAI's stateless chat protocol.

A conversation finds its thread again by what was said in it. A confirmation is a tool call whose id
names the thread; the client's `role: tool` answer resumes exactly that interrupt.
"""

import asyncio
import hashlib
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from pydantic import ValidationError

from stateset_agents.errors import ContextFull, PolicyUnreachable
from stateset_agents.nodes.agent import Confirmation
from stateset_agents.server.http import (
    Refusal,
    body_of,
    event,
    install,
    messages_of,
    while_connected,
)

MAX_THREADS = 2000


@dataclass(slots=True)
class Thread:
    """One conversation: its state, whether it is being answered, and what it waits for."""

    id: str
    saver: InMemorySaver = field(default_factory=InMemorySaver)
    busy: bool = False
    pending: str | None = None
    """Id of the tool call that asks for the customer's confirmation."""

    def branch(self) -> InMemorySaver:
        """A copy of the state for one turn, kept only if the turn succeeds: what failed can be asked
        again and finds the conversation as it was."""
        twin = InMemorySaver()
        for thread, spaces in self.saver.storage.items():
            for space, checkpoints in spaces.items():
                twin.storage[thread][space] = dict(checkpoints)
        twin.writes.update({key: dict(written) for key, written in self.saver.writes.items()})
        twin.blobs.update(self.saver.blobs)
        return twin


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A graph by its name: how it is compiled on a checkpointer, and the context of a thread."""

    compile: Callable[[InMemorySaver], CompiledStateGraph[Any, Any, Any, Any]]
    context: Callable[[str], Any]
    step_limit: int


class Threads:
    """Threads by the conversation so far; the ones unused for longest are dropped.

    A thread has one key, that of its last answered turn. Who says the same words as somebody before
    must not land in a conversation that has gone on: it may know another customer by now.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, Thread] = OrderedDict()

    def find(self, key: str) -> Thread | None:
        thread = self._by_key.get(key)
        if thread is not None:
            self._by_key.move_to_end(key)
        return thread

    def move(self, thread: Thread, old: str, new: str) -> None:
        """Keep a thread under its newest words alone."""
        if self._by_key.get(old) is thread:
            del self._by_key[old]
        self._by_key[new] = thread
        self._by_key.move_to_end(new)
        while len(self._by_key) > MAX_THREADS:
            self._by_key.popitem(last=False)


def words(messages: list[dict[str, Any]]) -> str:
    """A key of the visible conversation: who said what, and which confirmations were answered."""
    plain = [
        [m["role"], text_of(m.get("content")), [c["id"] for c in m.get("tool_calls") or []]]
        for m in messages
        if m["role"] in ("user", "assistant", "tool")
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def checked(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The request's messages, which a turn can follow. Raises Refusal."""
    messages = messages_of(body)
    if messages[-1]["role"] not in ("user", "tool"):
        raise Refusal(
            400,
            "messages: expected the last one to be the user's or a tool's.",
            "invalid_value",
            param="messages",
        )
    if (body.get("n") or 1) != 1:
        raise Refusal(
            400, "n: expected 1; a conversation has one next turn.", "invalid_value", param="n"
        )
    return messages


def build(graphs: dict[str, Served], *, key: str | None) -> FastAPI:
    """The application that serves `graphs`, with a bearer key where one is given."""
    app = FastAPI(title="stateset-agents")
    install(app, key=key)
    threads = Threads()

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "stateset-agents"}
            for name in graphs
        ]
        return JSONResponse({"object": "list", "data": data})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await body_of(request)
        messages = checked(body)
        name = str(body.get("model"))
        served = graphs.get(name)
        if served is None:
            known = ", ".join(graphs)
            raise Refusal(
                404,
                f"model: expected one of {known}, found {name!r}.",
                "model_not_found",
                param="model",
            )
        turn = _turn(threads, served, name, messages)
        if not body.get("stream"):
            return JSONResponse(await while_connected(request, turn.answer()))
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return StreamingResponse(turn.stream(usage), media_type="text/event-stream")

    return app


def _turn(threads: Threads, served: Served, name: str, messages: list[dict[str, Any]]) -> "Turn":
    """Find or make the thread that these messages continue, and what to send it."""
    thread = threads.find(words(messages[:-1]))
    if thread is not None and thread.busy:
        raise Refusal(
            409, "This conversation is being answered already.", "thread_busy", retry=False
        )
    last = messages[-1]
    send: Any
    if last["role"] == "tool":
        if thread is None:
            raise Refusal(
                409,
                "Expected an answer to a pending confirmation, found no such conversation.",
                "nothing_pending",
                retry=False,
            )
        if thread.pending is None or last.get("tool_call_id") != thread.pending:
            raise Refusal(
                409, "Expected the id of the pending confirmation.", "nothing_pending", retry=False
            )
        try:
            answer = Confirmation.model_validate_json(text_of(last.get("content")))
        except ValidationError:
            raise Refusal(
                400,
                'Expected {"confirmed": true} or {"confirmed": false} as content.',
                "invalid_value",
            ) from None
        send = Command(resume=answer.model_dump())
    else:
        new: list[AnyMessage] = [HumanMessage(text_of(last.get("content")))]
        if thread is None:
            thread = Thread(uuid.uuid4().hex)
            new = [
                (HumanMessage if m["role"] == "user" else AIMessage)(text_of(m.get("content")))
                for m in messages
                if m["role"] in ("user", "assistant")
            ]
        elif thread.pending is not None:
            raise Refusal(
                409,
                "Expected the pending confirmation to be answered first.",
                "confirmation_pending",
                retry=False,
            )
        send = {"messages": new}
    thread.busy = True
    return Turn(threads, served, name, thread, messages, send)


def _config(served: Served, thread: Thread) -> RunnableConfig:
    return {"configurable": {"thread_id": thread.id}, "recursion_limit": served.step_limit}


class Turn:
    """One run of the graph on one thread, answered whole or as a stream."""

    def __init__(
        self, threads: Threads, served: Served, name: str, thread: Thread,
        messages: list[dict[str, Any]], send: Any,
    ) -> None:  # fmt: skip
        self.threads, self.served, self.thread, self.messages, self.send = (
            threads, served, thread, messages, send,
        )  # fmt: skip
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
        }
        self.text = ""
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self.calls: list[dict[str, Any]] = []
        self.said: asyncio.Queue[str | None] = asyncio.Queue()
        # A task of its own: a server cancels its answer again and again (anyio), and LangGraph would be
        # cancelled in the middle of cancelling its nodes. It begins here and not with the first piece, so
        # that the thread is free again also where nobody ever reads the answer.
        self.run = asyncio.create_task(self._run(self.said.put_nowait))
        self.run.add_done_callback(lambda _: self.said.put_nowait(None))

    async def pieces(self) -> AsyncIterator[str]:
        """The agent's words as they come. A client that leaves cancels the run."""
        try:
            while (piece := await self.said.get()) is not None:
                yield piece
            await self.run
        finally:
            self.run.cancel()

    async def _run(self, say: Callable[[str], None]) -> None:
        """Run the graph to its end or its interrupt, then keep the thread."""
        saver = self.thread.branch()
        graph = self.served.compile(saver)
        config = _config(self.served, self.thread)
        speaking = ""
        try:
            steps: AsyncIterator[Any] = graph.astream(
                self.send,
                config,
                context=self.served.context(self.thread.id),
                stream_mode="messages",
                subgraphs=True,  # an agent may be a part of the graph
                durability="exit",
            )
            async for _, (message, _) in steps:
                if not isinstance(message, AIMessage | AIMessageChunk):
                    continue
                if message.usage_metadata:
                    self.usage["prompt_tokens"] += message.usage_metadata["input_tokens"]
                    self.usage["completion_tokens"] += message.usage_metadata["output_tokens"]
                    self.usage["total_tokens"] += message.usage_metadata["total_tokens"]
                if message.text:
                    gap = "\n" if self.text and message.id != speaking else ""
                    speaking = message.id or ""
                    self.text += gap + message.text
                    say(gap + message.text)
            state = await graph.aget_state(config)
            pending = state.interrupts[0] if state.interrupts else None
            if pending is not None:
                asked = {k: v for k, v in pending.value.items() if k in ("tool", "arguments")}
                function = {"name": "confirm", "arguments": json.dumps(asked)}
                call = f"confirm_{self.thread.id}_{pending.id}"
                self.calls = [{"id": call, "type": "function", "function": function}]
        except GraphRecursionError:
            raise Refusal(
                500, "The agent took too many steps.", "step_limit", retry=False
            ) from None
        except ContextFull as error:
            raise Refusal(400, str(error), "context_length_exceeded", param="messages") from None
        except PolicyUnreachable:
            raise Refusal(503, "The policy server does not answer.", "policy_unreachable") from None
        finally:
            self.thread.busy = False
        self.thread.saver = saver
        self.thread.pending = self.calls[0]["id"] if self.calls else None
        old, new = words(self.messages[:-1]), words([*self.messages, self._message()])
        self.threads.move(self.thread, old, new)

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    @property
    def reason(self) -> str:
        return "tool_calls" if self.calls else "stop"

    async def answer(self) -> dict[str, Any]:
        async for _ in self.pieces():
            pass
        choice = {
            "index": 0,
            "message": self._message(),
            "finish_reason": self.reason,
            "logprobs": None,
        }
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    async def stream(self, usage: bool) -> AsyncIterator[str]:
        def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
            choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
            return event({**self.head, "object": "chat.completion.chunk", "choices": choices})

        yield chunk({"role": "assistant", "content": ""})
        try:
            async for piece in self.pieces():
                yield chunk({"content": piece})
        except Refusal as refusal:
            yield event({"error": refusal.error})
            yield event("[DONE]")
            return
        for index, call in enumerate(self.calls):
            yield chunk({"tool_calls": [{"index": index, **call}]})
        yield chunk({}, self.reason)
        if usage:
            body = {"object": "chat.completion.chunk", "choices": [], "usage": self.usage}
            yield event({**self.head, **body})
        yield event("[DONE]")
