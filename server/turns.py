"""One turn of a conversation with a served graph: a run of the graph, answered whole or as a stream, or an answer given before."""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphRecursionError
from langgraph.types import Command, Interrupt

from stateset_agents.errors import ContextFull, PolicyRefused, PolicyUnreachable
from stateset_agents.nodes.answers import Answer, Kind, acts_of, decided, kind_of, words_of
from stateset_agents.plain import plain
from stateset_agents.server.conversations import Conversation, Conversations
from stateset_agents.server.http import Refusal, event
from stateset_agents.server.journal import Statement
from stateset_agents.server.served import Graph, Served

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a turn answers."""

    served: Served
    name: str
    """The graph's name."""
    conversation: Conversation
    messages: Sequence[AnyMessage] = ()
    """The graph's new messages, unless it is resumed."""
    answer: bool | str | None = None
    """What it is resumed with: the decision on the pending confirmation, or words."""
    graph: Graph
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
    cut: bool = False
    """The policy's last answer was cut off by its limit of tokens."""

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
        if self.calls:
            return "tool_calls"
        return "length" if self.cut else "stop"

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
        self.pending: str | None = None
        """The name of what the graph asks at the end of the turn."""
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        # A task of its own: a server cancels its answer again and again (anyio), and LangGraph would be
        # cancelled in the middle of cancelling its nodes. It begins here and not with the first piece, so
        # that the conversation is free again also where nobody ever reads the answer.
        self.run = asyncio.create_task(self._run(self._pieces.put_nowait))
        self.run.add_done_callback(lambda _: self._pieces.put_nowait(None))

    async def pieces(self) -> AsyncIterator[str]:
        """The agent's text as it arrives. If the client disconnects, the run is cancelled; but not one that follows an answer to
        what the graph asked, which may have acted already: it comes to its end, and who asks again gets its outcome."""
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
            await asyncio.shield(self.run)
        finally:
            if self.request.answer is None:
                self.run.cancel()
            elif not self.run.done():
                self.kept.going_on.add(self.run)
                self.run.add_done_callback(self.kept.going_on.discard)
                self.run.add_done_callback(_ended_alone)

    async def _run(self, say: Callable[[str], None]) -> None:
        """Run the graph to its end or its interrupt, then store the conversation and the outcome."""
        request, thread = self.request, self.request.conversation.id
        after: dict[str, Any] | None = None
        left, lease = False, None
        self._stored = request.conversation.checkpoint is not None
        try:
            async with self.kept.journal.held_alive(thread, request.owner) as lease:
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
            if lease is not None and lease.lost:
                raise Refusal(
                    409, "Another server answers this conversation meanwhile.", "thread_busy"
                ) from None
            raise
        finally:
            if not left:
                request.served.ended(thread, after)

    async def _answered(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Run the graph, and store what came of it. Returns the final state."""
        request, graph = self.request, self.request.graph
        config: RunnableConfig = {**_config(request), "run_id": self.run_id}
        send: Any = {"messages": list(request.messages)}
        if request.answer is not None:
            send = await self._resumed(request.answer)
        before = await self._known() if request.served.speakers is not None else []
        speaking = ""
        steps: AsyncIterator[Any] = graph.astream(
            send,
            config,
            context=request.context,
            stream_mode="messages",
            subgraphs=True,  # an agent may be a part of the graph
            durability="exit",
        )
        async for _, (message, metadata) in steps:
            if not isinstance(message, AIMessage | AIMessageChunk):
                continue
            if message.usage_metadata:
                self.usage["prompt_tokens"] += message.usage_metadata["input_tokens"]
                self.usage["completion_tokens"] += message.usage_metadata["output_tokens"]
                self.usage["total_tokens"] += message.usage_metadata["total_tokens"]
            if (ended := message.response_metadata.get("finish_reason")) is not None:
                self.cut = ended == "length"
            again = (  # a node that returns anew what it has just said
                request.served.speakers is not None
                and not isinstance(message, AIMessageChunk)
                and message.text
                and self.text.endswith(message.text)
            )
            if message.text and not again and _speaks(request.served, metadata):
                self._say(message.text, say, gap=message.id != speaking)
                speaking = message.id or ""
        state = await graph.aget_state({"configurable": {"thread_id": request.conversation.id}})
        if request.served.speakers is not None and not self.text:
            # As the checkpoint has it: what a node wrote beside one that waits counts when both have ended.
            values = (await graph.aget_state(state.config)).values
            known = {message.id for message in before} - {None}
            new = [
                m for n, m in enumerate(_messages_of(values))
                if (m.id not in known if m.id else n >= len(before))
            ]  # fmt: skip
            self._say(_last_words(new), say)
        pending = state.interrupts[0] if state.interrupts else None
        if pending is not None:
            self._ask(pending, say)
        if not (self.text or self.calls):
            log.warning("the graph %s ended a turn without words for the customer", request.name)
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
        ended: list[Statement] = []
        if request.request is not None:
            outcome = {
                "message": self.message,
                "usage": self.usage,
                "id": self.id,
                "agreed": request.answer,
            }
            ended = self.kept.journal.ending(thread, request.request, outcome)
        await self.kept.keep(
            request.conversation, request.key, request.next_key(self.message), checkpoint=checkpoint,
            pending=self.pending, size=request.size, ended=ended,
        )  # fmt: skip

    async def _known(self) -> list[Any]:
        """The graph's messages before the turn's answer: those that it has, and those that it is given. Ids tell them apart, since
        a graph may drop some."""
        for message in self.request.messages:
            message.id = message.id or str(uuid.uuid4())
        state: Any = {}
        if self.request.conversation.checkpoint is not None:
            state = (await self.request.graph.aget_state(_config(self.request))).values
        return [*_messages_of(state), *self.request.messages]

    async def _resumed(self, answer: bool | str) -> Command[Any]:
        """The answer to what the graph has asked, in the form that it takes. Raises Refusal if it takes no such answer."""
        state = await self.request.graph.aget_state(_config(self.request))
        name = str(self.request.conversation.pending).rpartition("_")[2]
        pending = next((i for i in state.interrupts if i.id == name), None)
        if pending is None:
            raise Refusal(
                409, "Expected a pending question, found none.", "nothing_pending", retry=False
            )
        given: Answer | None = Answer(answer)
        if isinstance(answer, bool):
            given = decided(pending.value, [answer] * len(acts_of(pending.value)))
        elif kind_of(pending.value) == "other":
            with contextlib.suppress(ValueError):
                given = Answer(json.loads(answer))
        if given is None:
            word = "yes" if answer else "no"
            raise Refusal(
                400, f"This graph takes no {word} to this question.", "invalid_value", param="messages", retry=False
            )  # fmt: skip
        return Command(resume={pending.id: given.value})

    def _say(self, text: str, say: Callable[[str], None], *, gap: bool = True) -> None:
        """Words for the customer; with a `gap`, on a line of their own."""
        piece = f"\n{text}" if gap and self.text and text else text
        self.text += piece
        if piece:
            say(piece)

    def _ask(self, pending: Interrupt, say: Callable[[str], None]) -> None:
        """Ask the customer: in words, and for a decision or a form as a call. A plain question is answered by plain words."""
        kind = kind_of(pending.value)
        self.pending = f"{NAMES[kind]}_{self.request.conversation.id}_{pending.id}"
        words = words_of(pending.value)
        if kind != "approval":  # which is no business of the customer's
            self._say(words, say)
        function = {"name": NAMES[kind], "arguments": json.dumps(_shown(pending.value, words))}
        self.calls = [{"id": self.pending, "type": "function", "function": function}]


def _ended_alone(run: "asyncio.Task[None]") -> None:
    if not run.cancelled() and run.exception() is not None:
        log.error("a turn failed after its client had left", exc_info=run.exception())


NAMES: dict[Kind, str] = {
    "confirmation": "confirm",
    "approval": "approve",
    "question": "ask",
    "other": "answer",
}
"""How what a graph asks is named: as a function of a call, and in its id."""


def _shown(question: Any, words: str) -> dict[str, Any]:
    """What a client sees of a question, as a call's arguments."""
    acts = [{"tool": act.name, "arguments": plain(act.arguments)} for act in acts_of(question)]
    if not acts:
        return {"question": plain(question)}
    more = {} if not isinstance(question, dict) else question
    shown = {name: plain(more[name]) for name in ("question", "rule") if more.get(name)}
    if words:
        shown["summary"] = words
    return {**(acts[0] if len(acts) == 1 else {"acts": acts}), **shown}


def _speaks(served: Served, metadata: dict[str, Any]) -> bool:
    """Whether the words of a node reach the customer as they are sampled."""
    if served.speakers is None:
        return True
    inside = str(metadata.get("langgraph_checkpoint_ns", "")).split("|")
    names = {part.partition(":")[0] for part in inside} | {metadata.get("langgraph_node")}
    return bool(served.speakers & names)


def _messages_of(state: Any) -> list[Any]:
    messages = state.get("messages") if isinstance(state, dict) else None
    if not isinstance(messages, list):
        return []
    try:
        return list(convert_to_messages(messages))
    except (ValueError, TypeError, NotImplementedError):  # not messages, whatever they are called
        return [message for message in messages if isinstance(message, BaseMessage)]


def _last_words(messages: list[Any]) -> str:
    """The last message of an agent that has words; without one, what a tool answered last, as tools do that answer for an agent."""
    for kind in (AIMessage, ToolMessage):
        texts = [m.text for m in messages if isinstance(m, kind) and m.text]
        if texts:
            return str(texts[-1])
    return ""


def _config(request: Request) -> RunnableConfig:
    """Continues from the last answered turn; a failed turn leaves nothing."""
    where = {"thread_id": request.conversation.id}
    if request.conversation.checkpoint is not None:
        where["checkpoint_id"] = request.conversation.checkpoint
    return {"configurable": where, "recursion_limit": request.served.step_limit}
