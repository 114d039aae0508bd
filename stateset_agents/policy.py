"""The policy is a LangChain chat model over the OpenAI protocol that keeps what it sampled, exactly.

Token ids and log-probabilities never enter messages, graph state or checkpoints: they wait under the id of the
response until a recorder fetches them.
"""

import asyncio
import itertools
import random
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import ensure_config
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr

from stateset_agents.errors import ContextFull, PolicyUnreachable
from stateset_agents.trace import Sampling, agent_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The tokens of one answer, as the engine reports them."""

    response_id: str
    version: str
    prompt_ids: tuple[int, ...]
    sampled_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


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


_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
    weakref.WeakKeyDictionary()
)


class Policy(ChatOpenAI):
    """A served policy. Invoked or streamed, sync or async, bound to tools or not, it asks for the ids and
    log-probabilities of what it samples, and leaves them for the recorder.

    Async calls that are not streamed go over one pooled connection per event loop: the official
    client takes about 8 ms of CPU a call, which is more than a small engine takes to answer.
    """

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
        if "response_format" in payload or self._use_responses_api(payload):
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        payload |= payload.pop("extra_body", None) or {}
        answer = await self._post(payload)
        return self._create_chat_result(answer)

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        try:
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk
        except openai.APIError as error:
            status = getattr(error, "status_code", type(error).__name__)
            raise _problem(str(self.openai_api_base), status, error.message) from error

    async def _post(self, payload: dict[str, Any]) -> dict[str, Any]:
        key = self.openai_api_key
        headers = (
            {"Authorization": f"Bearer {key.get_secret_value()}"}
            if isinstance(key, SecretStr)
            else {}
        )
        where = f"{str(self.openai_api_base).rstrip('/')}/chat/completions"
        try:
            async with _session().post(where, json=payload, headers=headers) as response:
                body = await response.json(content_type=None)
                if response.status == 200 and isinstance(body, dict) and "choices" in body:
                    return body
                error = body.get("error") if isinstance(body, dict) else None
                reason = error.get("message") if isinstance(error, dict) else str(body)[:200]
                raise _problem(where, response.status, reason)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PolicyUnreachable(
                f"Expected a policy at {where}, found {type(error).__name__}: {error}. "
                "Start one with `stateset-agents policy serve`, or give --base-url."
            ) from error

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
            leave(sampled(raw))
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
                leave(joined(_streams.pop(chunk["id"])))
            while len(_streams) > WAITING:  # streams that nobody read to their end
                del _streams[next(iter(_streams))]
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


def _problem(where: str, status: int | str, reason: object) -> ContextFull | PolicyUnreachable:
    """What a server's refusal means here."""
    if status == 400 and "maximum context length" in str(reason):
        return ContextFull(str(reason))
    return PolicyUnreachable(f"Expected an answer from {where}, found {status}: {reason}")


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
    )


def connect(base_url: str, model: str, *, api_key: str = "EMPTY", exact: bool = True) -> Policy:
    """A token-exact policy at an OpenAI-compatible URL that ends in `/v1`."""
    return Policy(
        model=model,
        base_url=base_url,
        api_key=SecretStr(api_key),
        max_retries=0,
        disable_streaming=True,
        exact=exact,
    )


def _session() -> aiohttp.ClientSession:
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None or session.closed:
        session = aiohttp.ClientSession(
            # Uvicorn, and so vLLM, closes a connection that was idle for five seconds. We close it
            # first: a request that meets the server's closing is lost, and may not be sent twice.
            connector=aiohttp.TCPConnector(limit=256, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=120, sock_connect=10),
        )
        _sessions[loop] = session
    return session


async def close_connections() -> None:
    """Close this event loop's pooled connections."""
    session = _sessions.pop(asyncio.get_running_loop(), None)
    if session is not None:
        await session.close()
