"""One turn of a conversation with a served graph: a run of the graph, answered whole or as a stream, or an answer given before."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphRecursionError
from langgraph.graph.state import CompiledStateGraph

from stateset_agents.errors import ContextFull, PolicyRefused, PolicyUnreachable
from stateset_agents.server.conversations import Conversation, Conversations
from stateset_agents.server.http import Refusal, event

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A named graph: how it is compiled with a checkpointer, and the context of a thread."""

    compile: Callable[[BaseCheckpointSaver[str]], CompiledStateGraph[Any, Any, Any, Any]]
    context: Callable[[str], Any]
    step_limit: int
    ended: Callable[[str, dict[str, Any] | None], None] = lambda thread, state: None
    """Called after every turn with its thread and final state, or None if it failed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a turn answers."""

    served: Served
    name: str
    """The graph's name."""
    conversation: Conversation
    send: Any
    """The graph's input: new messages, or a resume."""
    context: Any
    key: str
    """The conversation's key before this turn."""
    next_key: Callable[[dict[str, Any]], str]
    """The conversation's key after an assistant's message."""
    size: int = 0
    """Characters of the conversation."""
    request: str | None = None
    """The request's name in the journal, if it may be asked again."""
    owner: str = ""
    """The token of the claim on its thread."""
    agreed: bool | None = None
    """The decision, if it answers a confirmation."""


@dataclass(kw_only=True)
class Reply:
    """An answer in OpenAI's forms."""

    model: str
    id: str = ""
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, int] = field(
        default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    )
    created: int = field(default_factory=lambda: int(time.time()))

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it arrives."""
        if self.text:
            yield self.text

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    @property
    def reason(self) -> str:
        return "tool_calls" if self.calls else "stop"

    @property
    def head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}

    async def answer(self) -> dict[str, Any]:
        async for _ in self.pieces():
            pass
        choice = {
            "index": 0,
            "message": self.message,
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
        except Exception:
            log.exception("a turn failed")
            broken = Refusal(500, "The turn failed in the server.", "internal_error", retry=False)
            yield event({"error": broken.error})
            yield event("[DONE]")
            return
        for index, call in enumerate(self.calls):
            yield chunk({"tool_calls": [{"index": index, **call}]})
        yield chunk({}, self.reason)
        if usage:
            body = {"object": "chat.completion.chunk", "choices": [], "usage": self.usage}
            yield event({**self.head, **body})
        yield event("[DONE]")


class Turn(Reply):
    """A run of the graph. It begins when it is made."""

    def __init__(self, kept: Conversations, request: Request) -> None:
        self.run_id = uuid.uuid4()
        """Id of the graph's run and so of its trace; the client gets it and can give feedback to it."""
        super().__init__(model=request.name, id=f"chatcmpl-{self.run_id.hex}")
        self.kept, self.request = kept, request
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        # A task of its own: a server cancels its answer again and again (anyio), and LangGraph would be
        # cancelled in the middle of cancelling its nodes. It begins here and not with the first piece, so
        # that the conversation is free again also where nobody ever reads the answer.
        self.run = asyncio.create_task(self._run(self._pieces.put_nowait))
        self.run.add_done_callback(lambda _: self._pieces.put_nowait(None))

    async def pieces(self) -> AsyncIterator[str]:
        """The agent's text as it arrives. If the client disconnects, the run is cancelled."""
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
            await self.run
        finally:
            self.run.cancel()

    async def _run(self, say: Callable[[str], None]) -> None:
        """Run the graph to its end or its interrupt, then store the conversation and the outcome."""
        request, thread = self.request, self.request.conversation.id
        after: dict[str, Any] | None = None
        left = False
        self._stored = request.conversation.checkpoint is not None
        try:
            async with self.kept.journal.held_alive(thread, request.owner):
                try:
                    after = await self._answered(say)
                finally:
                    if not self._stored:  # a new conversation that came to nothing leaves nothing
                        await asyncio.shield(self.kept.saver.adelete_thread(thread))
        except GraphRecursionError:
            raise Refusal(
                500, "The agent took too many steps.", "step_limit", retry=False
            ) from None
        except ContextFull as error:
            raise Refusal(400, str(error), "context_length_exceeded", param="messages") from None
        except PolicyRefused as error:
            log.error("the policy refused a turn of %s: %s", request.name, error)
            about = f" ({error.status})" if error.status else ""
            reason = (
                f"The policy server refused the request{about}; the server's log has the reason."
            )
            raise Refusal(502, reason, "policy_refused", retry=False) from None
        except PolicyUnreachable as error:
            log.error("the policy does not answer a turn of %s: %s", request.name, error)
            raise Refusal(503, "The policy server does not answer.", "policy_unreachable") from None
        except asyncio.CancelledError:  # the client has left, which says nothing of the answer
            left = True
            raise
        finally:
            if not left:
                request.served.ended(thread, after)

    async def _answered(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Run the graph, and store what came of it. Returns the final state."""
        request, thread = self.request, self.request.conversation.id
        graph = request.served.compile(self.kept.saver)
        config: RunnableConfig = {**_config(request), "run_id": self.run_id}
        speaking = ""
        steps: AsyncIterator[Any] = graph.astream(
            request.send,
            config,
            context=request.context,
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
        state = await graph.aget_state({"configurable": {"thread_id": thread}})
        pending = state.interrupts[0] if state.interrupts else None
        if pending is not None:
            self._ask(pending, say)
        self._stored = True
        storing = asyncio.ensure_future(self._store(state.config["configurable"]["checkpoint_id"]))
        try:  # a client that leaves now must not tear in two what is stored
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            await storing
            raise
        return dict(state.values)

    async def _store(self, checkpoint: str) -> None:
        """Store the conversation after this turn, and its outcome for whoever asks again."""
        request, thread = self.request, self.request.conversation.id
        await self.kept.keep(
            request.conversation, request.key, request.next_key(self.message), checkpoint=checkpoint,
            pending=self.calls[0]["id"] if self.calls else None, size=request.size,
        )  # fmt: skip
        if request.request is not None:
            outcome = {
                "message": self.message,
                "usage": self.usage,
                "id": self.id,
                "agreed": request.agreed,
            }
            await self.kept.journal.end(thread, request.request, outcome)

    def _ask(self, pending: Any, say: Callable[[str], None]) -> None:
        """Ask the customer to confirm: in words, and as a call of `confirm`."""
        value = pending.value if isinstance(pending.value, dict) else {"question": pending.value}
        parts = ("tool", "arguments", "summary", "question", "rule")
        shown = {name: part for name, part in value.items() if name in parts}
        function_name = "approve" if value.get("type") == "approval" else "confirm"
        summary = str(value.get("summary") or "")
        if summary and function_name == "confirm":  # an approval is no business of the customer's
            gap = "\n" if self.text else ""
            self.text += f"{gap}{summary}"
            say(f"{gap}{summary}")
        function = {"name": function_name, "arguments": json.dumps(shown)}
        call = f"{function_name}_{self.request.conversation.id}_{pending.id}"
        self.calls = [{"id": call, "type": "function", "function": function}]


def _config(request: Request) -> RunnableConfig:
    """Continues from the last answered turn; a failed turn leaves nothing."""
    where = {"thread_id": request.conversation.id}
    if request.conversation.checkpoint is not None:
        where["checkpoint_id"] = request.conversation.checkpoint
    return {"configurable": where, "recursion_limit": request.served.step_limit}
