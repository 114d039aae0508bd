"""The endpoint: a stateful graph behind OpenAI's stateless chat protocol.

A conversation is known by the client's own id for it (`x-thread-id`, or `metadata.thread_id`), or by its messages. A
confirmation is a tool call whose id names the thread; the client's `role: tool` answer, or a plain yes or no of the user, resumes
exactly that interrupt. It is answered once: who asks again gets the same answer.
"""

import asyncio
import contextlib
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage

from stateset_agents.server import turns
from stateset_agents.server.consent import decision, plain_answer, too_late
from stateset_agents.server.conversations import Conversation, Conversations
from stateset_agents.server.http import Refusal, install, while_connected
from stateset_agents.server.schema import EndpointChat
from stateset_agents.server.served import Served, Wishes
from stateset_agents.server.turns import NAMES, Reply, Turn

__all__ = ["Served", "build"]

MAX_WORDS = 200_000
"""Characters of a conversation; longer than what any served policy reads, and short enough to look through."""
THREAD = "x-thread-id"


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
        asking = _Asking(kept, served, body, messages, _thread_of(request, body))
        turn = await asking.reply()
        if not body.stream:
            return JSONResponse(await while_connected(request, turn.answer()))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(turn.stream(usage), media_type="text/event-stream")

    return app


def _thread_of(request: Request, body: EndpointChat) -> str | None:
    """The thread of the client's own id for a conversation, if it gives one."""
    own = request.headers.get(THREAD) or (body.metadata or {}).get("thread_id")
    if own is None:
        return None
    if not isinstance(own, str) or not 0 < len(own) <= 256 or not own.isprintable():
        raise Refusal(
            400,
            f"{THREAD}: expected a text of 1 to 256 printable characters.",
            "invalid_value",
            param=THREAD,
        )
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{body.model}/{own}").hex


class _Asking:
    """A request for the next turn of a conversation, and whose conversation it is."""

    def __init__(
        self, kept: Conversations, served: Served, body: EndpointChat, messages: list[dict[str, Any]], thread: str | None
    ) -> None:  # fmt: skip
        self.kept, self.served, self.body, self.messages, self.thread = (
            kept,
            served,
            body,
            messages,
            thread,
        )

    async def reply(self) -> Reply:
        """The reply: a turn that begins, or an answer that was given before."""
        last = self.messages[-1]
        if last["role"] == "tool":
            given = str(last.get("tool_call_id"))
            named = await self._of_call(given)
            content = text_of(last.get("content"))
            free = given.startswith((f"{NAMES['other']}_", f"{NAMES['question']}_"))
            return await self._decided(named, given, content if free else decision(content))
        words, call = text_of(last.get("content")), _open_call(self.messages)
        agreed = plain_answer(words)
        if call is not None and call.startswith(f"{NAMES['question']}_"):
            return await self._decided(await self._of_call(call), call, words)
        if call is not None and agreed is not None:
            return await self._decided(await self._of_call(call), call, agreed)
        conversation = await self._known()
        if conversation is not None and conversation.pending is not None:
            if conversation.pending.startswith(f"{NAMES['question']}_"):
                return await self._decided(conversation, conversation.pending, words)
            if conversation.pending.startswith(f"{NAMES['other']}_"):
                raise Refusal(
                    409, "Expected the pending call of `answer` to be answered first: with a tool's answer, JSON or text.",
                    "answer_pending", retry=False,
                )  # fmt: skip
            if conversation.pending.startswith("approve_"):
                raise Refusal(
                    409, "A person has to approve this first: with an answer to the call of `approve`.", "approval_pending",
                    retry=False,
                )  # fmt: skip
            if agreed is None:
                raise Refusal(
                    409, "Expected the pending confirmation to be answered first: with a tool's answer, or a plain yes or no.",
                    "confirmation_pending", retry=False,
                )  # fmt: skip
            return await self._decided(conversation, conversation.pending, agreed)
        return await self._spoken(conversation)

    async def _known(self) -> Conversation | None:
        """The conversation that these messages continue."""
        if self.thread is not None:
            return await self.kept.find(f"{self.body.model}/thread/{self.thread}")
        return await self.kept.find(self._key(self.messages[:-1]))

    def _key(self, messages: list[dict[str, Any]]) -> str:
        """The key of a conversation that is known by its words: with one graph, so that no other goes on with it."""
        return f"{self.body.model}/words/{words(messages)}"

    async def _of_call(self, call: str) -> Conversation:
        """The conversation that a confirmation's id names. Raises Refusal if there is none."""
        prefix, _, rest = call.partition("_")
        thread = rest.rpartition("_")[0]
        known = (
            "\0" not in call
            and prefix in NAMES.values()
            and thread
            and self.thread in (None, thread)
        )
        conversation = await self.kept.of_thread(thread, self.body.model) if known else None
        if conversation is None:
            raise Refusal(
                409, "Expected an answer to a pending confirmation, found no such conversation.", "nothing_pending", retry=False
            )  # fmt: skip
        return conversation

    async def _decided(self, conversation: Conversation, call: str, answer: bool | str) -> Reply:
        """The turn after an answer to what the graph asked, once; asked again, the same reply, or what has happened meanwhile."""
        claim = await self.kept.journal.claim(conversation.id, f"confirm/{call}")
        if claim.outcome is not None:
            return await self._again(conversation, call, claim.outcome, answer)
        if not claim.mine:
            raise Refusal(409, "This confirmation is being answered already.", "thread_busy")
        async with self._released_on_error(conversation.id, claim.owner):
            fresh = await self.kept.of_thread(conversation.id, self.body.model)
        if fresh is None or fresh.pending != call:
            await self.kept.journal.release(conversation.id, claim.owner)
            raise Refusal(
                409, "Expected the id of the pending confirmation.", "nothing_pending", retry=False
            )
        return await self._begin(fresh, claim.owner, request=f"confirm/{call}", answer=answer)

    async def _again(
        self, conversation: Conversation, call: str, outcome: dict[str, Any], answer: bool | str
    ) -> Reply:
        """The stored answer; to the opposite decision, what was done instead."""
        message = outcome["message"]
        reply = Reply(
            model=self.body.model, id=outcome["id"], text=message["content"] or "", calls=message.get("tool_calls", []),
            usage=outcome["usage"],
        )  # fmt: skip
        if answer != outcome["agreed"] and isinstance(answer, str):
            raise Refusal(
                409, "This question was answered before, with other words.", "answered_before", retry=False
            )  # fmt: skip
        if answer != outcome["agreed"]:
            reply.id, reply.calls = f"chatcmpl-{uuid.uuid4().hex}", []
            reply.text = too_late(outcome, _summary(self.messages, call))
            fresh = await self.kept.of_thread(conversation.id, self.body.model)
            if fresh is not None and fresh.checkpoint is not None and self.thread is None:
                # Whoever goes on from this answer is in the same conversation.
                await self.kept.keep(
                    fresh, "", self._key([*self.messages, reply.message]), checkpoint=fresh.checkpoint, pending=fresh.pending
                )  # fmt: skip
        return reply

    async def _spoken(self, conversation: Conversation | None) -> Reply:
        """The turn after the user's words."""
        last = self.messages[-1]
        new: list[AnyMessage] = [HumanMessage(text_of(last.get("content")))]
        owner = await self._claim(conversation) if conversation is not None else None
        if conversation is not None and owner is None:
            if self.thread is not None:
                raise Refusal(409, "This conversation is being answered already.", "thread_busy")
            conversation = None  # somebody else's, who has said the same
        if conversation is None or owner is None:
            conversation = Conversation(id=self.thread or uuid.uuid4().hex)
            owner = await self._claim(conversation)
            if owner is None:
                raise Refusal(409, "This conversation is being answered already.", "thread_busy")
            new = [
                (HumanMessage if m["role"] == "user" else AIMessage)(text_of(m.get("content")))
                for m in self.messages
                if m["role"] in ("user", "assistant")
            ]
        return await self._begin(conversation, owner, messages=new)

    async def _claim(self, conversation: Conversation) -> str | None:
        """The token of a claim on a conversation as it was read; None if another turn is under way, or has been since."""
        claim = await self.kept.journal.claim(conversation.id, "")
        if not claim.mine:
            return None
        async with self._released_on_error(conversation.id, claim.owner):
            now = await self.kept.of_thread(conversation.id, self.body.model)
        if now != conversation and not (now is None and conversation.checkpoint is None):
            await self.kept.journal.release(conversation.id, claim.owner)
            return None
        return claim.owner

    @contextlib.asynccontextmanager
    async def _released_on_error(self, thread: str, owner: str) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await asyncio.shield(self.kept.journal.release(thread, owner))
            raise

    async def _begin(
        self, conversation: Conversation, owner: str, *, messages: Sequence[AnyMessage] = (), request: str | None = None,
        answer: bool | str | None = None,
    ) -> Turn:  # fmt: skip
        """The turn begins; its thread is claimed."""
        wishes = Wishes(
            self.body.sampling, self.body.instructions, goes_on=conversation.checkpoint is not None
        )
        async with self._released_on_error(conversation.id, owner):
            graph, context = self.served.begin(self.kept.saver, conversation.id, wishes)
        key = f"{self.body.model}/thread/{self.thread}"
        own = self.thread is not None
        return Turn(
            self.kept,
            turns.Request(
                served=self.served, name=self.body.model, conversation=conversation, messages=messages, graph=graph,
                context=context,
                key=key if own else self._key(self.messages[:-1]),
                next_key=lambda message: key if own else self._key([*self.messages, message]),
                size=sum(len(text_of(m.get("content"))) for m in self.messages), request=request, answer=answer, owner=owner,
            ),
        )  # fmt: skip


def _open_call(messages: list[dict[str, Any]]) -> str | None:
    """The id of the confirmation or the question in the message before the last one."""
    before = messages[-2] if len(messages) > 1 else {}
    calls = before.get("tool_calls") or []
    plain = (NAMES["confirmation"], NAMES["question"])
    return next((str(c["id"]) for c in calls if c["function"]["name"] in plain), None)


def _summary(messages: list[dict[str, Any]], call: str) -> str:
    """What a confirmation was about, as the client was told."""
    for message in reversed(messages):
        for made in message.get("tool_calls") or []:
            if made["id"] != call:
                continue
            try:
                about = json.loads(made["function"]["arguments"])
            except (KeyError, TypeError, ValueError):
                break
            summary = about.get("summary") if isinstance(about, dict) else None
            return str(summary or made["function"]["arguments"]).rstrip(".")
    return "what was asked"
