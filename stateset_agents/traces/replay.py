"""Replays a recorded run of any graph with the recorded answers of its models and tools. Models are answered through
LangChain's cache, tools instead of their `run`; the first request that is not in the record is the divergence. Both hooks are
process-wide, so it needs its own process (`traces replay --graph`)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.messages import AIMessage, ToolMessage, convert_to_messages
from langchain_core.outputs import ChatGeneration
from langchain_core.tools import BaseTool
from langchain_core.tools.base import get_all_basemodel_annotations
from langgraph.types import Command

from stateset_agents.errors import BadInput, StatesetError
from stateset_agents.plain import plain
from stateset_agents.trace import ModelCall, ToolCall, Trace, words
from stateset_agents.traces.conversion import openai_message, openai_messages


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

    def use(self, tool: BaseTool, arguments: Any) -> ToolCall | None:
        """The recorded call; None if the tool must really run."""
        name, given = tool.name, _given_arguments(tool, arguments)
        for call in self.tools:
            if call.name == name and _given_arguments(tool, call.arguments) == given:
                self.tools.remove(call)
                if self.swap is not None and self.swap[0] == name and not self.swapped:
                    self.swapped = True
                    return call.model_copy(
                        update={"result": self.swap[1], "status": "done", "content": None}
                    )
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
    before: Trace | None = None
    with _scripted(script):
        for trace in traces:
            if trace.input is None:
                raise BadInput(
                    f"Expected the input of trace {trace.id[:12]} on record, found none."
                )
            try:
                given = await _given(graph, config, trace.input, before)
                state = await graph.ainvoke(given, config)
            except Diverged as error:
                return [], str(error)
            before = trace
    messages = state.get("messages") if isinstance(state, dict) else None
    again = [dict(message) for message in openai_messages(messages or [])]
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
        content: Any = call.content
        if content is None:
            content = call.result if isinstance(call.result, str) else json.dumps(call.result)
        call_id = options.get("tool_call_id")
        if call_id is None:
            return call.result
        status: Any = "error" if call.status == "failed" else "success"
        return ToolMessage(
            content, tool_call_id=call_id, name=tool.name, status=status, artifact=call.artifact
        )

    def scripted(tool: BaseTool, tool_input: Any, *args: Any, **options: Any) -> Any:
        call = script.use(tool, tool_input)
        if call is None or _hands_over(call):
            return run(tool, tool_input, *args, **options)
        return result(tool, call, options)

    async def ascripted(tool: BaseTool, tool_input: Any, *args: Any, **options: Any) -> Any:
        call = script.use(tool, tool_input)
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


def _given_arguments(tool: BaseTool, arguments: Any) -> Any:
    """What the model gave a tool: without what the graph injects, such as its state, and as plain data."""
    if not isinstance(arguments, dict):
        return {"input": arguments}
    given = json.loads(json.dumps(plain(arguments)))
    schema = tool.tool_call_schema
    if not isinstance(schema, type) or "input" in given:
        return given
    shown = set(get_all_basemodel_annotations(schema))
    return {name: value for name, value in given.items() if name in shown} if shown else {}


async def _given(graph: Any, config: Any, value: Any, before: Trace | None) -> Any:
    """A recorded input as a graph takes it."""
    if isinstance(value, dict) and "resume" in value and set(value) <= {"resume", "update", "goto"}:
        resume = value["resume"]
        if isinstance(resume, dict) and before is not None:
            resume = await _by_new_ids(graph, config, resume, before)
        update = value.get("update")
        if isinstance(update, dict):
            update = _with_messages(update)
        return Command(resume=resume, update=update, goto=value.get("goto") or ())
    return _with_messages(value) if isinstance(value, dict) else value


async def _by_new_ids(graph: Any, config: Any, resume: dict[str, Any], before: Trace) -> Any:
    """Answers by the ids of interrupts, by the ids that the interrupts have in the replay: those that asked the same, in order."""
    known = {entry["id"]: entry for entry in before.waits_for}
    if not known or not set(resume) <= set(known):
        return resume
    waiting = list((await graph.aget_state(config)).interrupts)
    ids = {}
    for old, entry in known.items():
        same = next((i for i in waiting if plain(i.value) == entry["value"]), None)
        same = same or (waiting[0] if waiting else None)
        if same is not None:
            waiting.remove(same)
            ids[old] = same.id
    return {ids.get(old, old): answer for old, answer in resume.items()}


def _with_messages(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("messages"), list):
        return value
    return {**value, "messages": convert_to_messages(_sendable(value["messages"]))}


def _sendable(messages: list[Any]) -> list[Any]:
    """Messages without what LangChain's form has other places for."""
    return [
        {k: v for k, v in m.items() if k != "extra"} if isinstance(m, dict) else m for m in messages
    ]


def _answer(call: ModelCall) -> AIMessage:
    assert call.answer is not None
    (message,) = convert_to_messages(_sendable([{"content": "", **call.answer}]))
    assert isinstance(message, AIMessage)
    invalid = (call.answer.get("extra") or {}).get("invalid_tool_calls")
    if invalid:
        message.invalid_tool_calls = invalid
    return message


def _arguments(text: Any) -> Any:
    try:
        return json.loads(text or "{}")
    except (TypeError, ValueError):
        return text


def _comparable(message: dict[str, Any]) -> dict[str, Any]:
    """The compared parts of a message: role, text, and calls by name and arguments."""
    calls = [
        (call["function"]["name"], _arguments(call["function"]["arguments"]))
        for call in message.get("tool_calls") or []
    ]
    content = message.get("content") or ""
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = words(message)
    return {"role": message.get("role"), "content": content, "calls": calls}


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text")
