"""Converts a recorder's events into the parts of a trace; called by the sink, perhaps later."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langgraph.errors import GraphRecursionError
from langgraph.types import Command

from stateset_agents.errors import ContextFull
from stateset_agents.policy.completion import Completion
from stateset_agents.trace import ModelCall, Status, ToolCall, Trace


@dataclass(slots=True)
class RecordedRequest:
    """A called model, with its place in the run."""

    node: str
    namespace: str
    attempt: int
    messages: Sequence[BaseMessage]
    parameters: dict[str, Any]
    clock: float


SAMPLING = (
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "response_format", "guided_json", "structured_outputs",
)  # fmt: skip
"""Parameters besides temperature that change the sampling distribution."""


def sampling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A request's sampling parameters: the temperature (None if not given) and the others."""
    settings = {**parameters, **(parameters.get("extra_body") or {})}
    temperature = settings.get("temperature")
    rest = {name: _plain(settings[name]) for name in SAMPLING if settings.get(name) is not None}
    return {"temperature": None if temperature is None else float(temperature), "sampling": rest}


def _request_fields(call: RecordedRequest, seconds: float, texts: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "node": call.node,
        "namespace": call.namespace,
        "attempt": call.attempt,
        "turn": sum(message.type == "human" for message in call.messages),
        **sampling(call.parameters),
        "seconds": seconds,
    }
    if texts:
        fields["messages"] = tuple(_openai(message) for message in call.messages)
        fields["tools"] = tuple(_plain(tool) for tool in call.parameters.get("tools") or ())
    return fields


def answered(
    call: RecordedRequest, message: BaseMessage, response_id: str, tokens: Completion | None, seconds: float,
    texts: bool,
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
    call: RecordedRequest, error: BaseException, run_id: str, seconds: float, texts: bool
) -> ModelCall:
    problem = f"{type(error).__name__}: {error}"
    return ModelCall(response_id=run_id, error=problem, **_request_fields(call, seconds, texts))


def used(name: str, call: str, inputs: Any, output: Any, error: BaseException | None) -> ToolCall:
    arguments = _plain(inputs)
    result: Any = f"{type(error).__name__}: {error}" if error is not None else _result(output)
    broke = error is not None or getattr(output, "status", "") == "error"
    return ToolCall(
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
    waiting: bool,
    seconds: float,
) -> Trace:
    state = output if isinstance(output, dict) else {}
    alone = [output] if isinstance(output, AIMessage) else []
    given_back = state.get("messages") if state else alone
    messages = (
        [m for m in given_back if isinstance(m, BaseMessage)]
        if isinstance(given_back, list)
        else []
    )
    status: Status = "waiting" if waiting else "completed"
    if error is not None:
        cut = isinstance(error, GraphRecursionError | ContextFull)
        status = "truncated" if cut else "failed"
    session = state.get("session")
    customer = session.get("customer") if isinstance(session, dict) else None
    return trace.model_copy(
        update={
            "status": status,
            "error": None if error is None else f"{type(error).__name__}: {error}",
            "customer": str(customer or trace.customer),
            "input": {"resume": _plain(given.resume)}
            if isinstance(given, Command)
            else _plain(given),
            "messages": tuple(_openai(message) for message in messages),
            "tool_calls": _own_tools(state.get("tool_calls")),
            "output": {k: v for k, v in state.items() if isinstance(v, str | int | float | bool)}
            or None,
            "seconds": seconds,
        }
    )


def _own_tools(attempts: Any) -> tuple[ToolCall, ...]:
    """The tool calls in the state of a shop agent, whose tools are not LangChain's."""
    if not isinstance(attempts, list) or not all(
        isinstance(attempt, dict)
        and {"id", "name", "arguments", "status", "result"} <= attempt.keys()
        for attempt in attempts
    ):
        return ()
    return tuple(ToolCall.model_validate(attempt) for attempt in attempts)


def _openai(message: BaseMessage) -> dict[str, Any]:
    try:
        made: Any = convert_to_openai_messages(message)
    except (ValueError, KeyError, TypeError):  # a block or a kind that OpenAI has no form for
        role = _ROLES.get(message.type, message.type)
        made = {"role": role, "content": message.content or str(message)}
    return dict(_plain(made))


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


def _plain(value: Any) -> Any:
    """The value as JSON data; other objects as text."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, BaseMessage):
        return _openai(value)
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (an object of somebody's app that cannot be printed)
        return f"<{type(value).__name__}>"


_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


def openai_message(message: Any) -> dict[str, Any]:
    """A message of OpenAI or LangChain, as an object or a dict, in OpenAI's form."""
    source = message
    if isinstance(source, dict) and source.get("lc") and source.get("type") == "constructor":
        source = {
            **(source.get("kwargs") or {}),
            "type": str((source.get("id") or [""])[-1]).lower(),
        }
    if not isinstance(source, dict):
        return {"role": "user", "content": str(source)}
    if "role" in source:
        return source
    kind = str(source.get("type") or "").removesuffix("message").removesuffix("messagechunk")
    body = source.get("data") or source
    converted: dict[str, Any] = {
        "role": _ROLES.get(kind, kind or "user"),
        "content": body.get("content") or "",
    }
    calls = body.get("tool_calls")
    if calls:
        converted["tool_calls"] = [
            {"id": c.get("id"), "type": "function",
             "function": {"name": c.get("name"), "arguments": json.dumps(c.get("args") or {})}} for c in calls
        ]  # fmt: skip
    if body.get("tool_call_id"):
        converted["tool_call_id"] = body["tool_call_id"]
    return converted
