"""The endpoint: a stateful graph behind OpenAI's stateless chat protocol.

A conversation is mapped to its thread by its messages. A confirmation is a tool call whose id
names the thread; the client's `role: tool` answer resumes exactly that interrupt.
"""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphRecursionError
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from pydantic import ValidationError

from stateset_agents.errors import ContextFull, PolicyUnreachable
from stateset_agents.nodes.state import Agents, Confirmation
from stateset_agents.server.conversations import Conversation, Conversations
from stateset_agents.server.http import Refusal, event, install, while_connected
from stateset_agents.server.schema import EndpointChat

MAX_WORDS = 200_000
"""Characters of a conversation; longer than what any served policy reads, and short enough to look through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A named graph: how it is compiled with a checkpointer, and the context of a thread."""

    compile: Callable[[BaseCheckpointSaver[str]], CompiledStateGraph[Any, Any, Any, Any]]
    context: Callable[[str], Any]
    step_limit: int
    ended: Callable[[str, dict[str, Any] | None], None] = lambda thread, state: None
    """Called after every turn with its thread and final state, or None if it failed."""


def words(messages: list[dict[str, Any]]) -> str:
    """The key of the visible conversation: a hash of its messages and answered confirmations."""
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


def checked(body: EndpointChat) -> list[dict[str, Any]]:
    """The request's messages. Raises Refusal if no agent's turn can follow them."""
    last = body.messages[-1]
    if last.role not in ("user", "tool"):
        reason = "messages: expected the last one to be the user's or a tool's."
        raise Refusal(400, reason, "invalid_value", param="messages")
    if last.role == "user" and not last.text.strip():
        reason = f"messages.{len(body.messages) - 1}.content: expected words, found none."
        raise Refusal(400, reason, "invalid_value", param="messages")
    if sum(len(message.text) for message in body.messages) > MAX_WORDS:
        reason = f"messages: expected at most {MAX_WORDS:,} characters in all, found more."
        raise Refusal(400, reason, "context_length_exceeded", param="messages")
    return [message.model_dump(exclude_unset=True) for message in body.messages]


def as_asked(context: Any, body: EndpointChat) -> Any:
    """The context of a turn with the client's sampling and further instructions. These come below the agent's own rules, which
    the tools enforce whatever the prompt says. Raises Refusal if the graph is not an agent of ours, which could take them."""
    sampling, instructions = body.sampling, body.instructions
    if not (sampling or instructions):
        return context
    if not isinstance(context, Agents):
        field = "messages" if instructions else next(iter(sampling))
        raise Refusal(
            400, f"{field}: this graph takes no settings from a client.", "unsupported_parameter", param=field
        )  # fmt: skip
    note = f"\nThe app that you work in asks, as far as the rules allow: {instructions}"
    team = {
        name: replace(
            agent,
            policy=agent.policy.bind(**sampling) if sampling else agent.policy,
            prompt=agent.prompt + (note if instructions else ""),
        )
        for name, agent in context.team.items()
    }
    return Agents(team=team)


def build(
    graphs: dict[str, Served], *, key: str | None, conversations: Conversations | None = None
) -> FastAPI:
    """The application that serves `graphs`, with a bearer key where one is given; conversations are kept in memory by
    default."""
    app = FastAPI(title="stateset-agents", strict_content_type=False)
    install(app, key=key)
    kept = conversations or Conversations()

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
    async def chat(body: EndpointChat, request: Request) -> Response:
        messages = checked(body)
        name = body.model
        served = graphs.get(name)
        if served is None:
            known = ", ".join(graphs)
            raise Refusal(
                404,
                f"model: expected one of {known}, found {name!r}.",
                "model_not_found",
                param="model",
            )
        turn = await _turn(kept, served, body, messages)
        if not body.stream:
            return JSONResponse(await while_connected(request, turn.answer()))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(turn.stream(usage), media_type="text/event-stream")

    return app


async def _turn(
    kept: Conversations, served: Served, body: EndpointChat, messages: list[dict[str, Any]]
) -> "Turn":
    """Find or make the conversation that these messages continue, and the input of its next turn."""
    conversation = await kept.find(words(messages[:-1]))
    if conversation is not None and conversation.id in kept.answering:
        raise Refusal(
            409, "This conversation is being answered already.", "thread_busy", retry=False
        )
    last = messages[-1]
    send: Any
    if last["role"] == "tool":
        if conversation is None:
            raise Refusal(
                409,
                "Expected an answer to a pending confirmation, found no such conversation.",
                "nothing_pending",
                retry=False,
            )
        if conversation.pending is None or last.get("tool_call_id") != conversation.pending:
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
        if conversation is None:
            conversation = Conversation(id=uuid.uuid4().hex)
            new = [
                (HumanMessage if m["role"] == "user" else AIMessage)(text_of(m.get("content")))
                for m in messages
                if m["role"] in ("user", "assistant")
            ]
        elif conversation.pending is not None:
            raise Refusal(
                409,
                "Expected the pending confirmation to be answered first.",
                "confirmation_pending",
                retry=False,
            )
        send = {"messages": new}
    context = as_asked(served.context(conversation.id), body)
    kept.answering.add(conversation.id)
    return Turn(
        kept,
        replace(served, context=lambda thread: context),
        body.model,
        conversation,
        messages,
        send,
    )


def _config(served: Served, conversation: Conversation) -> RunnableConfig:
    """Continues from the last answered turn; a failed turn leaves nothing."""
    where = {"thread_id": conversation.id}
    if conversation.checkpoint is not None:
        where["checkpoint_id"] = conversation.checkpoint
    return {"configurable": where, "recursion_limit": served.step_limit}


class Turn:
    """One turn: a run of the graph in a conversation, answered whole or as a stream."""

    def __init__(
        self, kept: Conversations, served: Served, name: str, conversation: Conversation,
        messages: list[dict[str, Any]], send: Any,
    ) -> None:  # fmt: skip
        self.kept, self.served, self.conversation, self.messages, self.send = (
            kept, served, conversation, messages, send,
        )  # fmt: skip
        self.id = uuid.uuid4()
        """Id of the graph's run and so of its trace; the client gets it and can give feedback to it."""
        self.head = {
            "id": f"chatcmpl-{self.id.hex}",
            "created": int(time.time()),
            "model": name,
        }
        self.text = ""
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self.calls: list[dict[str, Any]] = []
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
        """Run the graph to its end or its interrupt, then store the conversation."""
        graph = self.served.compile(self.kept.saver)
        config: RunnableConfig = {**_config(self.served, self.conversation), "run_id": self.id}
        speaking = ""
        after: dict[str, Any] | None = None
        left = False
        try:
            steps: AsyncIterator[Any] = graph.astream(
                self.send,
                config,
                context=self.served.context(self.conversation.id),
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
            state = await graph.aget_state({"configurable": {"thread_id": self.conversation.id}})
            after = state.values
            pending = state.interrupts[0] if state.interrupts else None
            if pending is not None:
                write = {k: v for k, v in pending.value.items() if k in ("tool", "arguments")}
                function = {"name": "confirm", "arguments": json.dumps(write)}
                call = f"confirm_{self.conversation.id}_{pending.id}"
                self.calls = [{"id": call, "type": "function", "function": function}]
            old, new = words(self.messages[:-1]), words([*self.messages, self._message()])
            await self.kept.keep(
                self.conversation, old, new,
                checkpoint=state.config["configurable"]["checkpoint_id"],
                pending=self.calls[0]["id"] if self.calls else None,
            )  # fmt: skip
        except GraphRecursionError:
            raise Refusal(
                500, "The agent took too many steps.", "step_limit", retry=False
            ) from None
        except ContextFull as error:
            raise Refusal(400, str(error), "context_length_exceeded", param="messages") from None
        except PolicyUnreachable:
            raise Refusal(503, "The policy server does not answer.", "policy_unreachable") from None
        except asyncio.CancelledError:  # the client has left, which says nothing of the answer
            left = True
            raise
        finally:
            self.kept.answering.discard(self.conversation.id)
            if not left:
                self.served.ended(self.conversation.id, after)

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
