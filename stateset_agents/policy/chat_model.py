"""The policy is a LangChain chat model over the OpenAI protocol that keeps what it sampled, exactly.

Token ids and log-probabilities never enter messages, graph state or checkpoints: they wait under the id of the
response until a recorder fetches them.
"""

import contextlib
import itertools
import random
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import ensure_config
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr

from stateset_agents.errors import PolicyRefused
from stateset_agents.policy import blocking_portal, sequence_extension
from stateset_agents.policy.litellm import ProviderPolicy
from stateset_agents.policy.pool import Servers, servers_at
from stateset_agents.policy.transport import close_connections
from stateset_agents.settings import policy_key
from stateset_agents.trace import Sampling, agent_of

__all__ = [
    "Policy",
    "Sampled",
    "close_connections",
    "connect",
    "fetch",
    "leave",
    "reading",
    "sampling_as",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The tokens of one answer, as the engine reports them."""

    response_id: str
    version: str
    prompt_ids: tuple[int, ...]
    sampled_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    tries: int = 1
    """How often the call was sent before this answer came."""


blocking_portal.finally_(close_connections)

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], list[int]]

WAITING = 4096
"""Answers whose tokens are kept for a recorder that may never come."""
_waiting: OrderedDict[str, Sampled | None] = OrderedDict()
_streams: dict[str, list[dict[str, Any]]] = {}


def leave(sampled: Sampled) -> None:
    """Keep an answer's tokens for the recorder. Two answers under one id are nobody's: neither is kept."""
    twice = sampled.response_id in _waiting
    _waiting[sampled.response_id] = None if twice else sampled
    while len(_waiting) > WAITING:
        _waiting.popitem(last=False)


def fetch(response_id: str) -> Sampled | None:
    """The tokens of an answer, once; None where no policy of ours gave it, or gave none."""
    return _waiting.pop(response_id, None)


class Policy(ChatOpenAI):
    """A served policy. Invoked or streamed, sync or async, bound to tools or not, it asks for the ids and
    log-probabilities of what it samples, and leaves them for the recorder.

    Calls go to the servers' pooled connections: the official client takes about 8 ms of CPU a
    call, which is more than a small engine takes to answer, and knows one server alone.
    """

    servers: Servers = Field(exclude=True)
    """Who is asked."""
    patience: float = 0.0
    """For how many seconds a call is tried again while servers are away."""
    sends_ids: bool = True
    """Whether a later call of a conversation is sent as the ids of the one before it and what was added."""
    render: Render | None = Field(default=None, exclude=True)
    """Messages and tools as ids, by the chat template of the very model: saves asking a server for it."""
    session: str = ""
    """A conversation's mark: its calls go to one server, whose cache knows it."""

    exact: bool = True
    """Whether to ask for token ids: an engine decodes every token for them."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Model names to ask for at nodes, or agents below an orchestrator, that have one of their own."""
    calls: Iterator[int] = Field(default_factory=itertools.count, exclude=True)
    """Numbers the calls of a run: each samples with a seed of its own, drawn from the run's."""

    def sampling(self, sampling: Sampling) -> "Policy":
        """This policy, set to sample as told."""
        return self.model_copy(
            update={
                "model_name": sampling.version or self.model_name,
                "temperature": sampling.temperature,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed,
                "versions": sampling.versions,
                "calls": itertools.count(),
                "session": uuid.uuid4().hex,
            }
        )

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """One seed for every call would draw the same numbers each time: calls of an episode would err
        together, and the recorded log-probabilities would not be those of the episode."""
        payload: dict[str, Any] = super()._get_request_payload(input_, stop=stop, **kwargs)
        if self.versions:
            about = ensure_config().get("metadata") or {}
            node = str(about.get("langgraph_node", ""))
            agent = agent_of(str(about.get("langgraph_checkpoint_ns", "")))
            payload["model"] = (
                self.versions.get(node) or self.versions.get(agent) or payload["model"]
            )
        if self.seed is not None and "seed" not in kwargs:
            drawn = random.Random(f"{self.seed}/{next(self.calls)}")
            payload["seed"] = drawn.getrandbits(31)
        if self.exact:
            payload["logprobs"] = True
            payload["extra_body"] = {"return_token_ids": True, **(payload.get("extra_body") or {})}
        return payload

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        if self._official(payload):
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        return await self._answered(messages, payload)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        if self._official(payload):
            return super()._generate(messages, stop, run_manager, **kwargs)
        return blocking_portal.wait_for(self._answered(messages, payload))

    def _official(self, payload: dict[str, Any]) -> bool:
        """Whether the official client takes a call: it reads answers of a given form."""
        return "response_format" in payload or self._use_responses_api(payload)

    async def _answered(
        self, messages: Sequence[BaseMessage], payload: dict[str, Any]
    ) -> ChatResult:
        body, session, asked = await self._body(messages, payload)
        answer, sent = await self.servers.post(
            "/chat/completions", body, session=session, patience=self.patience
        )
        return self._create_chat_result({**answer, "tries": sent.tries, "asked": asked})

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        kwargs["stream"] = True
        if self._should_stream_usage(stream_usage, **kwargs):
            kwargs["stream_options"] = {"include_usage": True}
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        if self._official(payload):
            official = super()._astream(
                messages, stop, run_manager, stream_usage=stream_usage, **kwargs
            )
            async for read in official:
                yield read
            return
        body, session, asked = await self._body(messages, payload)
        kind: type = AIMessageChunk
        events = self.servers.stream(
            "/chat/completions", body, session=session, patience=self.patience
        )
        async with contextlib.aclosing(events):
            async for event in events:
                event["asked"] = asked
                made = self._convert_chunk_to_generation_chunk(event, kind, {})
                if made is None:
                    continue
                kind = made.message.__class__
                if run_manager is not None:
                    await run_manager.on_llm_new_token(made.text, chunk=made)
                yield made

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if "response_format" in kwargs:
            official = super()._stream(
                messages, stop, run_manager, stream_usage=stream_usage, **kwargs
            )
            yield from official
            return
        chunks = self._astream(messages, stop, None, stream_usage=stream_usage, **kwargs)
        for made in blocking_portal.iterate(chunks):
            if run_manager is not None:
                run_manager.on_llm_new_token(made.text, chunk=made)
            yield made

    async def _body(
        self, messages: Sequence[BaseMessage], payload: dict[str, Any]
    ) -> tuple[dict[str, Any], str, sequence_extension.Asked]:
        """What is sent, the conversation's mark, and what is known of the call. A call that goes on from one of ours carries its prompt as ids."""
        body = payload | (payload.pop("extra_body", None) or {})
        about = ensure_config().get("metadata") or {}
        session = self.session or str(about.get("thread_id") or "")
        spoken = (
            sequence_extension.before(messages, payload) if self.exact and self.sends_ids else None
        )
        prompt = await self._extended(spoken, body, session) if spoken is not None else None
        if prompt is not None:
            body["kv_transfer_params"] = {"prompt_token_ids": prompt}
        return (
            body,
            session,
            sequence_extension.asked(payload, spoken if prompt is not None else None),
        )

    async def _extended(
        self, spoken: sequence_extension.Spoken, body: dict[str, Any], session: str
    ) -> list[int] | None:
        """The prompt that goes on from an answer of ours; None where it has to be rendered anew."""
        messages, tools = body["messages"], body.get("tools")
        if self.render is not None:
            prompt = sequence_extension.extended(spoken, self.render(messages, tools))
            if prompt is not None:
                return prompt
        if not self.servers.tokenizes:
            return None
        try:
            rendered, _ = await self.servers.post(
                "/tokenize", {"model": body["model"], "messages": messages, "tools": tools},
                session=session, patience=self.patience,
            )  # fmt: skip
        except PolicyRefused as refused:
            # A server without it; what it says of these messages it says again where they are sent.
            if any(f"found {status}" in str(refused) for status in (404, 405, 501)):
                self.servers.tokenizes = False
            return None
        return sequence_extension.extended(spoken, rendered["tokens"])

    def _create_chat_result(
        self, response: Any, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        raw = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for generation in result.generations:
            generation.message.response_metadata.pop("logprobs", None)
            if generation.generation_info:
                generation.generation_info.pop("logprobs", None)
        if self.exact:
            tokens = sampled(raw)
            leave(tokens)
            choice = raw["choices"][0]
            _remember(tokens, choice["message"], choice.get("stop_reason"), raw.get("asked"))
        return result

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type,
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        """What is streamed is put together again, and left when it has come to its end."""
        if self.exact and chunk.get("choices"):
            pieces = _streams.setdefault(chunk["id"], [])
            pieces.append(chunk)
            # Of several choices every one has an end; what comes after the first is under an id that is taken.
            if chunk["choices"][0].get("finish_reason"):
                pieces = _streams.pop(chunk["id"])
                tokens = joined(pieces)
                leave(tokens)
                stopped = chunk["choices"][0].get("stop_reason")
                _remember(tokens, _message(pieces), stopped, chunk.get("asked"))
            if len(_streams) > WAITING:  # streams that nobody read to their end
                for unread in list(_streams)[:-WAITING]:
                    _streams.pop(unread, None)
        made = super()._convert_chunk_to_generation_chunk(
            chunk, default_chunk_class, base_generation_info
        )
        if made is not None and made.generation_info:
            made.generation_info.pop("logprobs", None)
            if made.generation_info.get(
                "finish_reason"
            ):  # as an answer has it that is not streamed
                made.generation_info["id"] = chunk["id"]
        return made


def _remember(
    tokens: Sampled,
    message: dict[str, Any],
    stopped_by: object,
    asked: sequence_extension.Asked | None,
) -> None:
    """Keep an answer for the call that goes on from it."""
    if asked is not None:
        sequence_extension.remember(
            tokens.response_id, message, tokens.prompt_ids, tokens.sampled_ids, tokens.finish_reason, stopped_by, asked
        )  # fmt: skip


def _message(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The assistant message that a stream was."""
    text, calls = "", dict[int, dict[str, str]]()
    for chunk in chunks:
        delta = chunk["choices"][0].get("delta") or {}
        text += delta.get("content") or ""
        for part in delta.get("tool_calls") or ():
            call = calls.setdefault(part["index"], {"name": "", "arguments": ""})
            function = part.get("function") or {}
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
    return {
        "content": text,
        "tool_calls": [{"function": call} for _, call in sorted(calls.items())],
    }


def sampled(raw: dict[str, Any], index: int = 0) -> Sampled:
    """The tokens in a chat completion of vLLM or of the embedded engine, of one of its choices; empty where it has
    none."""
    choice = raw["choices"][index]
    entries = (choice.get("logprobs") or {}).get("content") or []
    return Sampled(
        response_id=raw["id"],
        version=raw.get("model") or "",
        prompt_ids=tuple(raw.get("prompt_token_ids") or ()),
        sampled_ids=tuple(choice.get("token_ids") or ()),
        logprobs=tuple(entry["logprob"] for entry in entries),
        finish_reason=choice.get("finish_reason") or "",
        tries=raw.get("tries") or 1,
    )


def joined(chunks: Sequence[dict[str, Any]]) -> Sampled:
    """The tokens of a streamed answer, of its chunks with one choice each; empty where they are those of several
    answers, which nobody can take apart again."""
    parts = [sampled(chunk) for chunk in chunks]
    prompts = [part.prompt_ids for part in parts if part.prompt_ids]
    whole = {chunk["choices"][0].get("index", 0) for chunk in chunks} == {0} and len(prompts) == 1
    return Sampled(
        response_id=parts[0].response_id,
        version=parts[0].version,
        prompt_ids=prompts[0] if whole else (),
        sampled_ids=tuple(token for part in parts for token in part.sampled_ids) if whole else (),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs) if whole else (),
        finish_reason=next(
            (part.finish_reason for part in reversed(parts) if part.finish_reason), ""
        ),
        tries=parts[0].tries,
    )


def connect(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    exact: bool = True,
    patience: float = 0.0,
) -> Policy:
    """A token-exact policy at an OpenAI-compatible URL that ends in `/v1`, or at several with commas between them. Without a
    key, STATESET_POLICY_KEY is sent where it is set. `patience`: for how many seconds a call is tried again while servers are away."""
    if api_key is None:
        api_key = policy_key()
    servers = servers_at(base_url, api_key)
    return Policy(
        model=model,
        base_url=servers.urls[0],
        api_key=SecretStr(api_key or "EMPTY"),
        max_retries=0,
        disable_streaming=True,
        exact=exact,
        servers=servers,
        patience=patience,
    )


def sampling_as(policy: BaseChatModel, sampling: Sampling) -> BaseChatModel:
    """The policy set to sample as told; a model that cannot be told is taken as it is."""
    if isinstance(policy, Policy | ProviderPolicy):
        return policy.sampling(sampling)
    return policy


@contextlib.contextmanager
def reading(policy: BaseChatModel, sampling: Sampling) -> Iterator[None]:
    """While an episode runs: the versions it asks for stay served."""
    if not isinstance(policy, Policy):
        yield
        return
    with policy.servers.reading({sampling.version, *sampling.versions.values()}):
        yield
