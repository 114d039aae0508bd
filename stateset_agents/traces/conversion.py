"""Converts a recorder's events into the parts of a trace; called by the sink, perhaps later."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_openai_messages
from langgraph.errors import GraphRecursionError
from langgraph.types import Command

from stateset_agents.errors import ContextFull
from stateset_agents.plain import DEPTH, plain
from stateset_agents.policy.completion import Completion
from stateset_agents.trace import ModelCall, Status, ToolCall, Trace
from stateset_agents.traces.sink import Texts


@dataclass(slots=True)
class RecordedRequest:
    """A called model, with its place in the run."""

    node: str
    namespace: str
    attempt: int
    messages: Sequence[BaseMessage]
    parameters: dict[str, Any]
    clock: float


HARMLESS = frozenset({
    "model", "model_name", "_type", "messages", "prompt", "input", "tools", "functions", "stream", "stream_options",
    "stream_usage", "seed", "max_tokens", "max_completion_tokens", "stop", "temperature", "n", "logprobs", "top_logprobs",
    "user", "metadata", "store", "extra_body", "extra_headers", "extra_query", "timeout", "request_timeout",
    "return_token_ids", "return_tokens_as_token_ids", "kv_transfer_params", "parallel_tool_calls", "service_tier",
    "prompt_cache_key", "safety_identifier", "request_id", "priority", "cache_salt", "include_reasoning", "chat_template",
    "chat_template_kwargs", "add_generation_prompt", "reasoning", "reasoning_effort", "verbosity", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output", "ls_structured_output_format",
})  # fmt: skip
"""Parameters of a request that do not change the distribution of a token after its prompt. All others are kept on record."""


def sampling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A request's sampling parameters: the temperature (None if not given) and whatever else may change the distribution, such
    as `top_p`, a forced `tool_choice`, or a form that the answer must have."""
    extra = parameters.get("extra_body")
    settings = {**parameters, **(extra if isinstance(extra, Mapping) else {})}
    rest = {
        str(name): _plain(value)
        for name, value in settings.items()
        if name not in HARMLESS and value is not None
    }
    tools = settings.get("tools")
    for tool in tools if isinstance(tools, list | tuple) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and function.get("strict"):
            rest["strict"] = True  # the engine may force the arguments into the tool's schema
    return {"temperature": _number(settings.get("temperature")), "sampling": rest}


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _request_fields(call: RecordedRequest, seconds: float, texts: Texts) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "node": call.node,
        "namespace": call.namespace,
        "attempt": call.attempt,
        "turn": sum(message.type == "human" for message in call.messages),
        **sampling(call.parameters),
        "seconds": seconds,
        "offered": len(call.parameters.get("tools") or ()),
    }
    if texts is True:
        fields["messages"] = tuple(_openai(message) for message in call.messages)
        fields["tools"] = tuple(_plain(tool) for tool in call.parameters.get("tools") or ())
    return fields


def answered(
    call: RecordedRequest, message: BaseMessage, response_id: str, tokens: Completion | None, seconds: float,
    texts: Texts,
) -> ModelCall:  # fmt: skip
    fields = _request_fields(call, seconds, texts)
    about = message.response_metadata
    fields["version"] = str(about.get("model_name") or call.parameters.get("model") or "")
    fields["finish_reason"] = str(about.get("finish_reason") or "")
    if tokens is not None:
        fields |= {
            "version": tokens.version,
            "prompt_ids": tokens.prompt_ids,
            "sampled_ids": tokens.sampled_ids,
            "logprobs": tokens.logprobs,
            "finish_reason": tokens.finish_reason,
            "tries": tokens.tries,
        }
        if len(tokens.logprobs) != len(tokens.sampled_ids):  # no training on what is not whole
            fields["logprobs"] = ()
    if texts:
        fields["answer"] = _openai(message)
    return ModelCall(response_id=response_id, **fields)


def unanswered(
    call: RecordedRequest, error: BaseException, run_id: str, seconds: float, texts: Texts
) -> ModelCall:
    problem = f"{type(error).__name__}: {error}"
    return ModelCall(response_id=run_id, error=problem, **_request_fields(call, seconds, texts))


def used(
    name: str, inputs: Any, output: Any, error: BaseException | None = None, *, call: str
) -> ToolCall:
    arguments = _plain(inputs)
    result: Any = f"{type(error).__name__}: {error}" if error is not None else _result(output)
    broke = error is not None or getattr(output, "status", "") == "error"
    shown = getattr(output, "content", None) if isinstance(output, ToolMessage) else None
    if isinstance(result, dict | str) and shown == (
        result if isinstance(result, str) else json.dumps(result)
    ):
        shown = None
    return ToolCall(
        content=_plain(shown),
        artifact=_plain(getattr(output, "artifact", None)),
        id=call,
        name=name,
        arguments=arguments if isinstance(arguments, dict) else {"input": arguments},
        status="failed" if broke else "done",
        result=result if isinstance(result, dict) else str(result),
    )


def finished(
    trace: Trace,
    given: Any,
    output: Any,
    error: BaseException | None,
    ended: Status | None,
    seconds: float,
    waits_for: tuple[dict[str, Any], ...] = (),
) -> Trace:
    """The trace at a run's end. `ended`: how, if that is known otherwise than by its error."""
    state = output if isinstance(output, dict) else {}
    alone = [output] if isinstance(output, AIMessage) else []
    given_back = state.get("messages") if state else alone
    messages = (
        [m for m in given_back if isinstance(m, BaseMessage)]
        if isinstance(given_back, list)
        else []
    )
    status: Status = ended or "completed"
    if ended is not None:
        error = None  # nobody listened any more: no failure of the run
    elif error is not None:
        cut = isinstance(error, GraphRecursionError | ContextFull)
        status = "truncated" if cut else "failed"
    session = state.get("session")
    customer = session.get("customer") if isinstance(session, dict) else None
    return trace.model_copy(
        update={
            "status": status,
            "error": None if error is None else f"{type(error).__name__}: {error}",
            "customer": str(customer or trace.customer),
            "input": _command(given) if isinstance(given, Command) else _plain(given),
            "waits_for": waits_for if status == "waiting" else (),
            "messages": openai_messages(messages),
            "tool_calls": own_tools(state),
            "output": output_of(output),
            "seconds": seconds,
        }
    )


def _command(given: Command[Any]) -> dict[str, Any]:
    """A command as plain data, with the parts that it has."""
    parts = {"resume": given.resume, "update": given.update, "goto": given.goto}
    return {name: _plain(part) for name, part in parts.items() if name == "resume" or part}


def interrupts_of(interrupts: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Interrupts as plain data."""
    return tuple({"id": str(i.id), "value": _plain(i.value)} for i in interrupts)


def output_of(output: Any) -> dict[str, Any] | None:
    """What a graph returned, as plain data, without its messages; what is no dict is under the key `output`."""
    if isinstance(output, dict):
        kept = {k: _plain(v) for k, v in output.items() if k not in NOT_OUTPUT}
        return {str(key): value for key, value in kept.items()} or None
    return None if output is None or isinstance(output, AIMessage) else {"output": _plain(output)}


NOT_OUTPUT = ("messages", "tool_calls", "session", "__interrupt__")
"""Parts of a final state that a trace has in other places."""


def merged(own: Sequence[ToolCall], seen: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Tool calls as a shop agent keeps them, and those that were seen besides: a call is there once, with what the agent knows
    of it."""
    known = {call.id for call in own}
    return (*own, *(call for call in seen if call.id not in known))


def own_tools(state: dict[str, Any]) -> tuple[ToolCall, ...]:
    """The tool calls in the state of a shop agent, whose tools are not LangChain's."""
    attempts = state.get("tool_calls")
    if not isinstance(attempts, list) or not all(
        isinstance(attempt, dict)
        and {"id", "name", "arguments", "status", "result"} <= attempt.keys()
        for attempt in attempts
    ):
        return ()
    return tuple(ToolCall.model_validate(attempt) for attempt in attempts)


def openai_messages(messages: Sequence[BaseMessage]) -> tuple[dict[str, Any], ...]:
    """A conversation in OpenAI's form."""
    return tuple(_openai(message) for message in messages)


def _openai(message: BaseMessage) -> dict[str, Any]:
    try:
        made: Any = convert_to_openai_messages(message)
    except (ValueError, KeyError, TypeError):  # a block or a kind that OpenAI has no form for
        role = _ROLES.get(message.type, message.type)
        made = {"role": role, "content": message.content or str(message)}
    return {**_plain(made), **_beside(message.__dict__)}


_HAS_A_PLACE = ("tool_calls", "function_call", "refusal", "audio")
"""Parts of LangChain's `additional_kwargs` that OpenAI's form has a place for."""


def _beside(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a message of LangChain has that OpenAI's form has no place for: its reasoning, and the rest under `extra`."""
    kept: dict[str, Any] = {}
    additional = body.get("additional_kwargs")
    additional = dict(additional) if isinstance(additional, Mapping) else {}
    for name in ("reasoning_content", "audio"):
        if additional.get(name):
            kept[name] = _plain(additional.pop(name))
    extra: dict[str, Any] = {}
    for name in ("invalid_tool_calls", "artifact"):
        if body.get(name):
            extra[name] = _plain(body[name])
    if body.get("status") == "error":
        extra["status"] = "error"
    extra |= {k: _plain(v) for k, v in additional.items() if v and k not in _HAS_A_PLACE}
    return {**kept, **({"extra": extra} if extra else {})}


def _result(output: Any) -> Any:
    if isinstance(output, Command):
        return {"command": _plain(output.update)}
    content = getattr(output, "content", output)
    if isinstance(content, str):
        try:
            read = json.loads(content)
        except ValueError:
            return content
        return read if isinstance(read, dict) else content
    return _plain(content)


def _plain(value: Any, depth: int = DEPTH) -> Any:
    """The value as JSON data, messages in OpenAI's form; other objects as text."""
    if isinstance(value, BaseMessage):
        return _openai(value)
    if isinstance(value, dict) and depth:
        return {str(key): _plain(item, depth - 1) for key, item in list(value.items())}
    if isinstance(value, list | tuple | set) and depth:
        return [_plain(item, depth - 1) for item in value]
    return plain(value)


_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


def openai_message(message: Any) -> dict[str, Any]:
    """A message of OpenAI or LangChain, as an object or a dict, in OpenAI's form."""
    if isinstance(message, BaseMessage):
        return _openai(message)
    source = message
    if isinstance(source, dict) and source.get("lc") and source.get("type") == "constructor":
        source = {
            **(source.get("kwargs") or {}),
            "type": str((source.get("id") or [""])[-1]).lower(),
        }
    if not isinstance(source, dict):
        return {"role": "user", "content": str(source)}
    if "role" in source:
        return dict(source)
    kind = str(source.get("type") or "").removesuffix("message").removesuffix("messagechunk")
    body = source.get("data")
    body = body if isinstance(body, dict) else source
    converted: dict[str, Any] = {
        "role": _ROLES.get(kind, kind or "user"),
        "content": body.get("content") or "",
    }
    calls = body.get("tool_calls")
    if calls:
        converted["tool_calls"] = [
            {"id": c.get("id"), "type": "function",
             "function": {"name": c.get("name"), "arguments": json.dumps(plain(c.get("args") or {}))}}
            for c in calls if isinstance(c, dict)
        ]  # fmt: skip
    if body.get("tool_call_id"):
        converted["tool_call_id"] = body["tool_call_id"]
    return {**_plain(converted), **_beside(body)}
