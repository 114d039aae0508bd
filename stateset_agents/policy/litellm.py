"""Models of any provider that litellm knows, as baselines. Extra: `judge`.

They give no token ids, so their traces are `text` and are not trained on.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from stateset_agents.errors import BadInput, ContextFull, PolicyRefused, PolicyUnreachable
from stateset_agents.trace import Sampling

PREFIX = "litellm:"


class ProviderPolicy(BaseChatModel):
    """`litellm:openai/gpt-4.1-mini`, with the provider's own key in the environment; or your own server with `base_url`."""

    provider_model: str
    """The model's name in litellm."""
    base_url: str | None = None
    temperature: float = 0.0
    max_tokens: int = 160
    seconds: float = 60.0
    """Seconds that an answer may take."""

    @property
    def _llm_type(self) -> str:
        return "litellm"

    def sampling(self, sampling: Sampling) -> "ProviderPolicy":
        """This policy with other sampling settings; a provider does not have our versions."""
        update = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        return self.model_copy(update=update)

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        litellm = await asyncio.to_thread(load_litellm)
        try:
            answer = await litellm.acompletion(
                model=self.provider_model, messages=convert_to_openai_messages(messages), temperature=self.temperature,
                max_tokens=self.max_tokens, timeout=self.seconds, num_retries=2, stop=stop, api_base=self.base_url, **kwargs,
            )  # fmt: skip
        except litellm.ContextWindowExceededError as error:
            raise ContextFull(str(error)) from None
        except (
            litellm.AuthenticationError,
            litellm.BadRequestError,
            litellm.NotFoundError,
        ) as error:
            raise PolicyRefused(
                f"Expected an answer from {self.provider_model!r}, found {type(error).__name__}: {_first_line(error)}. "
                "Look at the model's name and the provider's key in the environment."
            ) from None
        except Exception as error:  # noqa: BLE001 (litellm raises what the provider's client does)
            raise PolicyUnreachable(
                f"Expected an answer from {self.provider_model!r}, found {type(error).__name__}: {_first_line(error)}"
            ) from None
        choice = answer.choices[0]
        calls, bad = [], []
        for call in choice.message.tool_calls or ():
            try:
                arguments = json.loads(call.function.arguments or "{}")
                calls.append({"id": call.id, "name": call.function.name, "args": arguments})
            except ValueError as error:
                bad.append({"id": call.id, "name": call.function.name, "args": call.function.arguments,
                            "error": str(error), "type": "invalid_tool_call"})  # fmt: skip
        message = AIMessage(
            choice.message.content or "", tool_calls=calls, invalid_tool_calls=bad,
            response_metadata={"id": answer.id, "model_name": answer.model, "finish_reason": choice.finish_reason},
        )  # fmt: skip
        info = {"finish_reason": choice.finish_reason}
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return asyncio.run(self._agenerate(messages, stop, None, **kwargs))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def load_litellm() -> Any:
    """Import litellm, which takes seconds, without its download of prices. Raises BadInput if it is not installed."""
    import os

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError:
        raise BadInput("Expected litellm, found none: install the extra 'judge'.") from None
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    return litellm
