"""A chat model that plays a scenario's plan, act by act."""

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from stateset_agents.scenario import Act


class Oracle(BaseChatModel):
    """Its next act is the one after those that it has already played; after the last one it is silent."""

    plan: tuple[Act, ...]

    @property
    def _llm_type(self) -> str:
        return "oracle"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Any graph may bind tools: the plan says which are called."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        played = sum(isinstance(message, AIMessage) for message in messages)
        act = self.plan[played] if played < len(self.plan) else Act(say="Goodbye.")
        calls = []
        if act.tool is not None:
            calls = [
                {
                    "name": act.tool,
                    "args": act.arguments,
                    "id": f"call-{played}",
                    "type": "tool_call",
                }
            ]
        message = AIMessage(content=act.say, tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])
