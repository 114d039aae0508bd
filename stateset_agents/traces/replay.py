"""Replays a recorded run of any graph with the recorded answers of its models and tools. Models are answered through
LangChain's cache, tools instead of their `run`; the first request that is not in the record is the divergence. Both hooks are
process-wide, so it needs its own process (`traces replay --graph`)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.messages import (
    AIMessage,
    ToolMessage,
    convert_to_messages,
    convert_to_openai_messages,
)
from langchain_core.outputs import ChatGeneration
from langchain_core.tools import BaseTool
from langgraph.types import Command

from stateset_agents.errors import BadInput, StatesetError
from stateset_agents.trace import ModelCall, ToolCall, Trace
from stateset_agents.traces.conversion import openai_message


class Diverged(StatesetError):
    """The run makes a request that is not in the record."""


class _Script(BaseCache):
    """The recorded answers, each given once. After a swap, requests that are not in the record are really made."""

    def __init__(self, traces: Sequence[Trace], swap: tuple[str, Any] | None) -> None:
        self.calls = [call for trace in traces for call in trace.calls]
        self.tools = [call for trace in traces for call in trace.tool_calls]
        self.swap = swap
        self.swapped = False

    def lookup(self, prompt: str, llm_string: str) -> Any:
        messages = [_comparable(openai_message(message)) for message in json.loads(prompt)]
        for call in self.calls:
            if [_comparable(message) for message in call.messages] == messages:
                self.calls.remove(call)
                return [ChatGeneration(message=_answer(call))]
        if self.swapped:
            return None
        expected = self.calls[0].messages[-1] if self.calls else "no further call"
        raise Diverged(f"the model is sent {messages[-1]}; the record has {expected}")

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None: ...

    def clear(self, **kwargs: Any) -> None: ...

    def use(self, name: str, arguments: Any) -> ToolCall | None:
        """The recorded call; None if the tool must really run."""
        given = arguments if isinstance(arguments, dict) else {"input": arguments}
        for call in self.tools:
            if call.name == name and call.arguments == given:
                self.tools.remove(call)
                if self.swap is not None and self.swap[0] == name and not self.swapped:
                    self.swapped = True
                    return call.model_copy(update={"result": self.swap[1], "status": "done"})
                return call
        if self.swapped:
            return None
        raise Diverged(f"the tool {name} is used with {given}, which is not in the record")


async def replay(
    graph: Any, traces: Sequence[Trace], *, swap: tuple[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Run `graph` from the inputs of a thread's runs, in order; the messages at the end of the last, and the first divergence,
    or None if it is identical. With `swap`, a tool's first result is replaced, and calls that are not in the record are really
    made. Raises BadInput for a run without a recorded input."""
    script = _Script(traces, swap)
    config: Any = {"configurable": {"thread_id": f"replay-{traces[0].id}"}, "recursion_limit": 100}
    state: Any = {}
    with _scripted(script):
        for trace in traces:
            if trace.input is None:
                raise BadInput(
                    f"Expected the input of trace {trace.id[:12]} on record, found none."
                )
            try:
                state = await graph.ainvoke(_given(trace.input), config)
            except Diverged as error:
                return [], str(error)
    messages = state.get("messages") if isinstance(state, dict) else None
    again = [openai_message(convert_to_openai_messages(message)) for message in messages or []]
    if swap is not None:
        return again, None
    for number, (message, other) in enumerate(zip(traces[-1].messages, again, strict=False)):
        if _comparable(message) != _comparable(other):
            return again, f"message {number}: expected {message}, found {other}"
    if len(again) != len(traces[-1].messages):
        return again, f"expected {len(traces[-1].messages)} messages, found {len(again)}"
    if script.calls:
        return again, f"the record has {len(script.calls)} model calls more"
    return again, None


@contextmanager
def _scripted(script: _Script) -> Iterator[None]:
    every: Any = BaseTool
    before, run, arun = get_llm_cache(), every.run, every.arun

    def result(tool: BaseTool, call: ToolCall, options: dict[str, Any]) -> Any:
        text = call.result if isinstance(call.result, str) else json.dumps(call.result)
        call_id = options.get("tool_call_id")
        if call_id is None:
            return call.result
        status: Any = "error" if call.status == "failed" else "success"
        return ToolMessage(text, tool_call_id=call_id, name=tool.name, status=status)

    def scripted(tool: BaseTool, tool_input: Any, *args: Any, **options: Any) -> Any:
        call = script.use(tool.name, tool_input)
        if call is None or _hands_over(call):
            return run(tool, tool_input, *args, **options)
        return result(tool, call, options)

    async def ascripted(tool: BaseTool, tool_input: Any, *args: Any, **options: Any) -> Any:
        call = script.use(tool.name, tool_input)
        if call is None or _hands_over(call):
            return await arun(tool, tool_input, *args, **options)
        return result(tool, call, options)

    set_llm_cache(script)
    every.run, every.arun = scripted, ascripted
    try:
        yield
    finally:
        set_llm_cache(before)
        every.run, every.arun = run, arun


def _hands_over(call: ToolCall) -> bool:
    """A tool that returns a command to the graph: it is run again."""
    return isinstance(call.result, dict) and "command" in call.result


def _given(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"resume"}:
        return Command(resume=value["resume"])
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return {**value, "messages": convert_to_messages(value["messages"])}
    return value


def _answer(call: ModelCall) -> AIMessage:
    assert call.answer is not None
    (message,) = convert_to_messages([{"content": "", **call.answer}])
    assert isinstance(message, AIMessage)
    return message


def _comparable(message: dict[str, Any]) -> dict[str, Any]:
    """The compared parts of a message: role, text, and calls by name and arguments."""
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"] or "{}"))
        for call in message.get("tool_calls") or []
    ]
    return {"role": message.get("role"), "content": message.get("content") or "", "calls": calls}
