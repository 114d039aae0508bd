"""The policy: a LangChain chat model over the OpenAI protocol that keeps its exact sampled tokens (`completion.py`)."""

import contextlib
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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
from stateset_agents.policy.chat_template import needed, refusal
from stateset_agents.policy.completion import completion_of, deposit, join_completions, join_message
from stateset_agents.policy.litellm import ProviderPolicy
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.sequence_extension import PendingCall, SampledSequence
from stateset_agents.settings import policy_key
from stateset_agents.trace import Sampling, agent_of

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], list[int]]

MAX_STREAMS = 4096
"""Streamed answers of the official client whose chunks are kept."""


class Policy(ChatOpenAI):
    """A served policy. Invoked or streamed, sync or async, bound to tools or not, it asks for the ids and log-probabilities of
    what it samples, and leaves them for the recorder.

    Calls go to the pool's connections: the official client takes about 8 ms of CPU a call, which is more than a small engine
    takes to answer, and knows one server alone. It is used where an answer has a given form (`response_format`), which it
    parses.
    """

    pool: ReplicaPool = Field(exclude=True)
    retry_seconds: float = 0.0
    """How long a call is retried while replicas do not answer, in seconds."""
    sends_ids: bool = True
    """Whether a later call of a conversation is sent as the ids of the call before it and the new part."""
    render: Render | None = Field(default=None, exclude=True)
    """Renders messages and tools to ids with the model's chat template, so that no server has to be asked."""
    session: str = ""
    """The conversation's name: its calls go to one replica, which has its prefix in the cache."""
    exact: bool = True
    """Whether to ask for token ids: an engine decodes every token for them."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions by node, or by agent below an orchestrator; other nodes use `model`."""
    calls: Iterator[int] = Field(default_factory=itertools.count, exclude=True)
    """Counts the calls of a run: each samples with its own seed, derived from the run's."""
    streams: dict[str, list[dict[str, Any]]] = Field(default_factory=dict, exclude=True)
    """Chunks of answers that the official client streams, by response id."""

    def sampling(self, sampling: Sampling) -> "Policy":
        """This policy with other sampling settings."""
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
            metadata = ensure_config().get("metadata") or {}
            node = str(metadata.get("langgraph_node", ""))
            agent = agent_of(str(metadata.get("langgraph_checkpoint_ns", "")))
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
        if self._is_official(payload):
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        return await self._answer(messages, payload)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        if self._is_official(payload):
            return super()._generate(messages, stop, run_manager, **kwargs)
        return blocking_portal.wait_for(self._answer(messages, payload))

    def _is_official(self, payload: dict[str, Any]) -> bool:
        """Whether the official client makes a call: it parses answers with a given form."""
        return "response_format" in payload or self._use_responses_api(payload)

    async def _answer(self, messages: Sequence[BaseMessage], payload: dict[str, Any]) -> ChatResult:
        body, session, call = await self._body(messages, payload)
        answer, sent = await self.pool.post(
            "/chat/completions", body, session=session, retry_seconds=self.retry_seconds
        )
        if not answer.get("choices"):
            raise PolicyRefused(
                f"Expected an answer with choices from {self.pool.urls[0]}, found none: {str(answer)[:200]}"
            )
        if self.exact:
            choice = answer["choices"][0]
            completion = completion_of(answer, tries=sent.tries)
            deposit(completion)
            sequence_extension.remember(
                completion, choice["message"], choice.get("stop_reason"), call
            )
        return _without_logprobs(super()._create_chat_result(answer))

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
        if self._is_official(payload):
            official = super()._astream(
                messages, stop, run_manager, stream_usage=stream_usage, **kwargs
            )
            async for chunk in official:
                yield chunk
            return
        body, session, call = await self._body(messages, payload)
        message_class: type = AIMessageChunk
        received: list[dict[str, Any]] = []
        events = self.pool.stream(
            "/chat/completions", body, session=session, retry_seconds=self.retry_seconds
        )
        async with contextlib.aclosing(events):
            async for event, sent in events:
                if self.exact:
                    self._receive(event, received, tries=sent.tries, call=call)
                made = self._chunk(event, message_class, {})
                if made is None:
                    continue
                message_class = made.message.__class__
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
    ) -> tuple[dict[str, Any], str, PendingCall]:
        """The request's body, the conversation's name, and what is known of the call. A call that extends a known sequence has
        its prompt as ids."""
        body = payload | (payload.pop("extra_body", None) or {})
        missing = needed(body["messages"], body.get("tools")) & self.pool.hides
        if missing:
            raise PolicyRefused(refusal(body["model"], missing))
        metadata = ensure_config().get("metadata") or {}
        session = self.session or str(metadata.get("thread_id") or "")
        exact = self.exact and self.sends_ids
        sequence = sequence_extension.extensible(messages, payload) if exact else None
        prompt = await self._extended(sequence, body, session) if sequence is not None else None
        if prompt is not None:
            body["kv_transfer_params"] = {"prompt_token_ids": prompt}
        extends = sequence if prompt is not None else None
        return body, session, sequence_extension.pending_call(payload, extends)

    async def _extended(
        self, sequence: SampledSequence, body: dict[str, Any], session: str
    ) -> list[int] | None:
        """The prompt that extends a known sequence; None if it has to be rendered anew."""
        messages, tools = body["messages"], body.get("tools")
        if self.render is not None:
            prompt = sequence_extension.extend(sequence, self.render(messages, tools))
            if prompt is not None:
                return prompt
        if not self.pool.tokenizes:
            return None
        try:
            rendered, _ = await self.pool.post(
                "/tokenize", {"model": body["model"], "messages": messages, "tools": tools},
                session=session, retry_seconds=self.retry_seconds,
            )  # fmt: skip
        except PolicyRefused as refused:
            # A server without it; what it refuses of these messages it refuses again where they are sent.
            if refused.status in (404, 405, 501):
                self.pool.tokenizes = False
            return None
        return sequence_extension.extend(sequence, rendered["tokens"])

    def _receive(
        self, chunk: dict[str, Any], received: list[dict[str, Any]], *, tries: int = 1, call: PendingCall | None = None
    ) -> None:  # fmt: skip
        """Add a streamed chunk. At the answer's end its tokens are kept for the recorder and for the next call."""
        if not chunk.get("choices"):
            return
        received.append(chunk)
        choice = chunk["choices"][0]
        # Of several choices every one has an end; what comes after the first is under an id that is taken.
        if choice.get("finish_reason"):
            completion = join_completions(received, tries=tries)
            deposit(completion)
            if call is not None:
                message, reason = join_message(received), choice.get("stop_reason")
                sequence_extension.remember(completion, message, reason, call)
            received.clear()

    def _create_chat_result(
        self, response: Any, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        """Handles the official client's answers."""
        raw = response if isinstance(response, dict) else response.model_dump(warnings=False)
        if self.exact:
            deposit(completion_of(raw))
        return _without_logprobs(super()._create_chat_result(response, generation_info))

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type,
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        """Handles the official client's chunks, of many streams at once."""
        if self.exact and chunk.get("choices"):
            received = self.streams.setdefault(chunk["id"], [])
            self._receive(chunk, received)
            if not received:
                del self.streams[chunk["id"]]
            while len(self.streams) > MAX_STREAMS:  # streams that nobody read to their end
                self.streams.pop(next(iter(self.streams)), None)
        return self._chunk(chunk, default_chunk_class, base_generation_info)

    def _chunk(
        self, chunk: dict[str, Any], message_class: type, info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        """LangChain's form of a chunk, without its log-probabilities, and with the response's id at its end, as in an answer
        that is not streamed."""
        made = super()._convert_chunk_to_generation_chunk(chunk, message_class, info)
        if made is not None and made.generation_info:
            made.generation_info.pop("logprobs", None)
            if made.generation_info.get("finish_reason"):
                made.generation_info["id"] = chunk["id"]
        return made


def _without_logprobs(result: ChatResult) -> ChatResult:
    """Remove log-probabilities from a message: they must not get into state and checkpoints."""
    for generation in result.generations:
        generation.message.response_metadata.pop("logprobs", None)
        if generation.generation_info:
            generation.generation_info.pop("logprobs", None)
    return result


def connect(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    exact: bool = True,
    retry_seconds: float = 0.0,
) -> Policy:
    """A token-exact policy at an OpenAI-compatible URL that ends in `/v1`, or at several with commas between them. Without a
    key, STATESET_POLICY_KEY is sent where it is set. `retry_seconds`: how long a call is retried while servers do not
    answer."""
    pool = pool_at(base_url, policy_key() if api_key is None else api_key)
    return policy_of(pool, model, exact=exact, retry_seconds=retry_seconds)


def policy_of(
    pool: ReplicaPool, model: str, *, exact: bool = True, retry_seconds: float = 0.0
) -> Policy:
    """The policy that a pool's replicas serve as `model`."""
    return Policy(
        model=model,
        base_url=pool.urls[0],
        api_key=SecretStr(pool.transport.key or "EMPTY"),
        max_retries=0,
        disable_streaming=True,
        exact=exact,
        pool=pool,
        retry_seconds=retry_seconds,
    )


def sampling_as(policy: BaseChatModel, sampling: Sampling) -> BaseChatModel:
    """The policy with other sampling settings; other models are returned unchanged."""
    if isinstance(policy, Policy | ProviderPolicy):
        return policy.sampling(sampling)
    return policy


@contextlib.contextmanager
def pinned(policy: BaseChatModel, sampling: Sampling) -> Iterator[None]:
    """Keep the versions of an episode served while it runs."""
    if not isinstance(policy, Policy):
        yield
        return
    with policy.pool.pin({sampling.version, *sampling.versions.values()}):
        yield
