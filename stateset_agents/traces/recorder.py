"""The recorder listens to runs of any LangGraph graph and keeps every model call and tool call with its node.

    graph = record(graph, store)        # the same graph, with the same results; what it does is in the store

It is a callback handler, works in the event loop, and only takes references: whatever costs more is done by whom it
hands them to.
"""

import atexit
import json
import os
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, Self, TypeVar
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.errors import GraphBubbleUp, GraphRecursionError
from langgraph.types import Command

from stateset_agents.errors import BadInput, ContextFull
from stateset_agents.policy import Sampled, fetch
from stateset_agents.trace import ModelCall, Status, ToolCall, Trace
from stateset_agents.traces.store import TraceStore

Graph = TypeVar("Graph")


class Keeper(Protocol):
    """Where a recorder leaves what it hears; a TraceStore is one."""

    def begin(self, trace: Trace) -> object: ...

    def add(self, run: str, make: Callable[[], ModelCall | ToolCall]) -> object: ...

    def discard(self, run: str, numbers: Sequence[int]) -> object: ...

    def end(self, run: str, make: Callable[[], Trace]) -> object: ...


@dataclass(slots=True)
class _Run:
    """A run from its outermost call to its end."""

    trace: Trace
    root: UUID
    clock: float
    calls: int = 0
    waiting: bool = False
    attempts: dict[str, int] = field(default_factory=dict)
    """How often each task was tried, by checkpoint namespace."""


@dataclass(slots=True)
class _Attempt:
    """One try of one node, perhaps inside one of another graph."""

    node: str
    namespace: str
    number: int
    above: "_Attempt | None"
    calls: list[int] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class _Place:
    """Where in a run something happens."""

    run: _Run
    attempt: _Attempt | None
    opens: bool
    """Whether this very call is the attempt's own."""


@dataclass(slots=True, frozen=True)
class _Asked:
    place: _Place
    messages: Sequence[BaseMessage]
    parameters: dict[str, Any]
    clock: float


class Recorder(GraphCallbackHandler):
    """Pass it in `config["callbacks"]`, or use `record`. `texts` says whether messages are kept of each call."""

    run_inline = True  # in the event loop: a hop to a thread costs ten times the work

    def __init__(self, keeper: Keeper, *, texts: bool = True) -> None:
        self._keeper = keeper
        self._texts = texts
        self._places: dict[UUID, _Place] = {}
        self._asked: dict[UUID, _Asked] = {}
        self._tools: dict[UUID, tuple[_Place, str, str, Any]] = {}

    # Chains: the run itself, and the attempts of its nodes.

    def on_chain_start(
        self, serialized: dict[str, Any] | None, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        about = metadata or {}
        above = self._places.get(parent_run_id) if parent_run_id is not None else None
        if above is None:
            run = self._begin(run_id, about, str(kwargs.get("name") or ""))
            self._places[run_id] = _Place(run, None, False)
            return
        node, namespace = about.get("langgraph_node"), str(about.get("langgraph_checkpoint_ns", ""))
        same = above.attempt is not None and above.attempt.namespace == namespace
        if node is None or same or not namespace:
            self._places[run_id] = _Place(above.run, above.attempt, False)
            return
        number = above.run.attempts.get(namespace, 0) + 1
        above.run.attempts[namespace] = number
        attempt = _Attempt(str(node), namespace, number, above.attempt)
        self._places[run_id] = _Place(above.run, attempt, True)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        place = self._places.pop(run_id, None)
        if place is not None and place.run.root == run_id:
            self._end(place.run, outputs, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        place = self._places.pop(run_id, None)
        if place is None:
            return
        bubbles = isinstance(
            error, GraphBubbleUp
        )  # an interrupt or a command to the graph above: no error
        if place.opens and place.attempt is not None and not bubbles and place.attempt.calls:
            self._keeper.discard(place.run.trace.id, tuple(place.attempt.calls))
        if place.run.root == run_id:
            self._end(place.run, None, None if bubbles else error)

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        place = self._places.get(event.run_id) if event.run_id is not None else None
        if place is not None:
            place.run.waiting = True

    # Model calls.

    def on_chat_model_start(
        self, serialized: dict[str, Any] | None, messages: list[list[BaseMessage]], *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        place = self._place(run_id, parent_run_id, metadata or {}, kwargs)
        parameters = kwargs.get("invocation_params") or {}
        self._asked[run_id] = _Asked(place, messages[0], parameters, time.perf_counter())

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        asked = self._asked.pop(run_id, None)
        if asked is None:
            return
        seconds = time.perf_counter() - asked.clock
        generation = response.generations[0][0]
        message = generation.message if isinstance(generation, ChatGeneration) else None
        about = message.response_metadata if message is not None else {}
        # A streamed answer has its id on the message alone.
        found = about.get("id") or (response.llm_output or {}).get("id")
        given = str(message.id) if message is not None and message.id else ""
        response_id = str(
            found or (given if not given.startswith(("run-", "lc_run-")) else "") or run_id
        )
        tokens = fetch(response_id)
        make = partial(_answered, asked, message, response_id, tokens, seconds, self._texts)
        self._add_call(asked.place, make)
        self._ended(run_id, asked.place, message, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        asked = self._asked.pop(run_id, None)
        if asked is None:
            return
        seconds = time.perf_counter() - asked.clock
        self._add_call(
            asked.place, partial(_unanswered, asked, error, str(run_id), seconds, self._texts)
        )
        self._ended(run_id, asked.place, None, error)

    # Tools.

    def on_tool_start(
        self, serialized: dict[str, Any] | None, input_str: str, *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        place = self._place(run_id, parent_run_id, metadata or {}, kwargs)
        name = str((serialized or {}).get("name") or kwargs.get("name") or "")
        call = str(kwargs.get("tool_call_id") or run_id)
        self._places[run_id] = place
        self._tools[run_id] = (place, name, call, input_str if inputs is None else inputs)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._tool_ended(run_id, output, None)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._tool_ended(run_id, None, error)

    def _tool_ended(self, run_id: UUID, output: Any, error: BaseException | None) -> None:
        self._places.pop(run_id, None)
        known = self._tools.pop(run_id, None)
        if known is None:
            return
        place, name, call, inputs = known
        if isinstance(error, GraphBubbleUp):
            return  # it asks somebody, and runs again when it is answered
        self._keeper.add(place.run.trace.id, partial(_used, name, call, inputs, output, error))
        self._ended(run_id, place, output, error)

    # Runs.

    def _place(
        self, run_id: UUID, parent: UUID | None, about: dict[str, Any], options: dict[str, Any]
    ) -> _Place:
        """Where a call happens; a call outside every graph is a run of its own."""
        above = self._places.get(parent) if parent is not None else None
        if above is not None:
            return _Place(above.run, above.attempt, False)
        return _Place(self._begin(run_id, about, str(options.get("name") or "")), None, False)

    def _begin(self, root: UUID, about: dict[str, Any], name: str) -> _Run:
        trace = Trace(
            id=root.hex,
            thread=str(about.get("thread_id") or ""),
            customer=str(about.get("customer") or about.get("user_id") or ""),
            graph=name,
            started=time.time(),
        )
        self._keeper.begin(trace)
        return _Run(trace, root, time.perf_counter())

    def _ended(self, run_id: UUID, place: _Place, output: Any, error: BaseException | None) -> None:
        if place.run.root == run_id:
            self._end(place.run, output, error)

    def _end(self, run: _Run, output: Any, error: BaseException | None) -> None:
        make = partial(
            _finished, run.trace, output, error, run.waiting, time.perf_counter() - run.clock
        )
        self._keeper.end(run.trace.id, make)

    def _add_call(self, place: _Place, make: Callable[[], ModelCall]) -> None:
        number = place.run.calls
        place.run.calls += 1
        above = place.attempt
        while above is not None:
            above.calls.append(number)
            above = above.above
        self._keeper.add(place.run.trace.id, make)


def record(graph: Graph, keeper: Keeper) -> Graph:
    """The same graph; what its runs do is kept in a TraceStore. Raises BadInput for what is no LangGraph graph.

    Whose conversation it is, so that it can be forgotten, is read from `customer` or `user_id` in the metadata of a
    run's config, and from the session of an agent of ours.
    """
    configured = getattr(graph, "with_config", None)
    if configured is None:
        raise BadInput(f"Expected a compiled LangGraph graph, found {type(graph).__name__}.")
    made: Graph = configured(callbacks=[Recorder(keeper)])
    return made


class Episode:
    """A keeper in memory, of the calls alone: for roll-outs, which know the rest."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, ModelCall]] = []

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(call for _, call in self._calls)

    def begin(self, trace: Trace) -> None: ...

    def add(self, run: str, make: Callable[[], ModelCall | ToolCall]) -> None:
        made = make()
        if isinstance(made, ModelCall):
            self._calls.append((run, made))

    def discard(self, run: str, numbers: Sequence[int]) -> None:
        mine = [place for place, (owner, _) in enumerate(self._calls) if owner == run]
        for number in numbers:
            call = self._calls[mine[number]][1]
            self._calls[mine[number]] = (run, call.model_copy(update={"discarded": True}))

    def end(self, run: str, make: Callable[[], Trace]) -> None: ...


# What is made of references, later and elsewhere.


def _asked_fields(asked: _Asked, seconds: float, texts: bool) -> dict[str, Any]:
    attempt, temperature = asked.place.attempt, asked.parameters.get("temperature")
    fields: dict[str, Any] = {
        "node": attempt.node if attempt else "",
        "namespace": attempt.namespace if attempt else "",
        "attempt": attempt.number if attempt else 1,
        "temperature": 1.0 if temperature is None else float(temperature),
        "seconds": seconds,
    }
    if texts:
        fields["messages"] = tuple(_openai(message) for message in asked.messages)
        fields["tools"] = tuple(_plain(tool) for tool in asked.parameters.get("tools") or ())
    return fields


def _answered(
    asked: _Asked, message: BaseMessage | None, response_id: str, tokens: Sampled | None, seconds: float,
    texts: bool,
) -> ModelCall:  # fmt: skip
    fields = _asked_fields(asked, seconds, texts)
    about = message.response_metadata if message is not None else {}
    fields["version"] = str(about.get("model_name") or asked.parameters.get("model") or "")
    fields["finish_reason"] = str(about.get("finish_reason") or "")
    if tokens is not None:
        fields |= {
            "version": tokens.version,
            "prompt_ids": tokens.prompt_ids,
            "sampled_ids": tokens.sampled_ids,
            "logprobs": tokens.logprobs,
            "finish_reason": tokens.finish_reason,
        }
        if len(tokens.logprobs) != len(tokens.sampled_ids):  # no training on what is not whole
            fields["logprobs"] = ()
    if texts and message is not None:
        fields["answer"] = _openai(message)
    return ModelCall(response_id=response_id, **fields)


def _unanswered(
    asked: _Asked, error: BaseException, run_id: str, seconds: float, texts: bool
) -> ModelCall:
    told = f"{type(error).__name__}: {error}"
    return ModelCall(response_id=run_id, error=told, **_asked_fields(asked, seconds, texts))


def _used(name: str, call: str, inputs: Any, output: Any, error: BaseException | None) -> ToolCall:
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


def _finished(
    trace: Trace, output: Any, error: BaseException | None, waiting: bool, seconds: float
) -> Trace:
    state = output if isinstance(output, dict) else {}
    said = state.get("messages") if state else [output] if isinstance(output, AIMessage) else None
    messages = (
        [m for m in said or [] if isinstance(m, BaseMessage)] if isinstance(said, list) else []
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
            "messages": tuple(_openai(message) for message in messages),
            "tool_calls": _own_tools(state.get("tool_calls")),
            "output": {k: v for k, v in state.items() if isinstance(v, str | int | float | bool)}
            or None,
            "seconds": seconds,
        }
    )


def _own_tools(attempts: Any) -> tuple[ToolCall, ...]:
    """The attempts in the state of an agent of ours, whose tools are not LangChain's."""
    if not isinstance(attempts, list) or not all(
        isinstance(one, dict) and {"id", "name", "arguments", "status", "result"} <= one.keys()
        for one in attempts
    ):
        return ()
    return tuple(ToolCall.model_validate(one) for one in attempts)


def _openai(message: BaseMessage) -> dict[str, Any]:
    made: Any = convert_to_openai_messages(message)
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
    """Data that JSON can hold; what it cannot is told in words."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, BaseMessage):
        return _openai(value)
    return str(value)


VARIABLE = "STATESET_RECORD"
_never: ContextVar[Any] = ContextVar("stateset_agents_recorder", default=None)


class ProcessRecorder(Recorder):
    """Every LangChain run of a process. LangChain makes one whenever a run begins; they are all the same."""

    _one: ClassVar[Any] = None

    def __new__(cls) -> Self:
        if cls._one is None:
            place = os.environ[VARIABLE]
            store = TraceStore("traces.db" if place in ("1", "true") else place)
            cls._one = super().__new__(cls)
            Recorder.__init__(cls._one, store)
            atexit.register(store.close)
        one: Self = cls._one
        return one

    def __init__(self) -> None: ...


def record_process() -> None:
    """Record every run of this process where `STATESET_RECORD` is set: into the store that it names (a file or
    `postgresql://…`), or into traces.db where it is 1. `import stateset_agents` does it."""
    register_configure_hook(
        _never, inheritable=True, handle_class=ProcessRecorder, env_var=VARIABLE
    )
