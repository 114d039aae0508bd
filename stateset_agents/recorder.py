"""The recorder listens to one graph run and keeps every model call with its node and its tokens."""

import time
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from stateset_agents.policy import Sampled
from stateset_agents.trace import ModelCall


class Recorder(BaseCallbackHandler):
    """Pass it in `config["callbacks"]` and `recorder.sink` to the policy; read `calls` afterwards."""

    run_inline = True  # in the event loop: a hop to a thread costs ten times the work

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self._open: dict[UUID, tuple[str, str, float, float]] = {}
        self._tokens: dict[str, Sampled] = {}

    def sink(self, sampled: Sampled) -> None:
        self._tokens[sampled.response_id] = sampled

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        about = metadata or {}
        temperature = kwargs.get("invocation_params", {}).get("temperature")
        self._open[run_id] = (
            str(about.get("langgraph_node", "")),
            str(about.get("langgraph_checkpoint_ns", "")),
            1.0 if temperature is None else float(temperature),
            time.perf_counter(),
        )

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        node, namespace, temperature, started = self._open.pop(run_id)
        generation = response.generations[0][0]
        about = (
            generation.message.response_metadata if isinstance(generation, ChatGeneration) else {}
        )
        response_id = str(about.get("id") or (response.llm_output or {}).get("id") or run_id)
        tokens = self._tokens.pop(response_id, None)
        self.calls.append(
            ModelCall(
                response_id=response_id,
                node=node,
                namespace=namespace,
                version=tokens.version if tokens else str(about.get("model_name", "")),
                prompt_ids=tokens.prompt_ids if tokens else (),
                sampled_ids=tokens.sampled_ids if tokens else (),
                logprobs=tokens.logprobs if tokens else (),
                finish_reason=tokens.finish_reason if tokens else "",
                temperature=temperature,
                seconds=time.perf_counter() - started,
            )
        )

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        node, namespace, temperature, started = self._open.pop(run_id)
        self.calls.append(
            ModelCall(
                response_id=str(run_id),
                node=node,
                namespace=namespace,
                temperature=temperature,
                seconds=time.perf_counter() - started,
                error=f"{type(error).__name__}: {error}",
            )
        )
