"""The recorder listens to runs of any LangGraph graph and records every model call and tool call with its node.

    graph = record(graph, store)        # the same graph, with the same results; its runs are in the store

It is a callback handler in the event loop and only takes references (of lists and dicts shallow copies, because the app may
change them); the sink does the rest of the work.
"""

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.constants import END
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.types import Command

from stateset_agents.policy.completion import fetch, unclaimed
from stateset_agents.trace import ModelCall, Status, Trace
from stateset_agents.traces.conversion import (
    RecordedRequest,
    answered,
    finished,
    interrupts_of,
    unanswered,
    used,
)
from stateset_agents.traces.run_state import HINT, MAX_IDS, Attempt, Place, Run, copied, is_own
from stateset_agents.traces.sink import Texts, TraceSink


class Recorder(GraphCallbackHandler):
    """Pass it in `config["callbacks"]`, or use `record`. `texts`: whether each call's messages are kept, or its answer alone."""

    run_inline = True  # in the event loop: a hop to a thread costs ten times the work

    def __init__(
        self, sink: TraceSink, *, texts: Texts = True, last_nodes: frozenset[str] = frozenset()
    ) -> None:
        """`last_nodes`: the nodes after which the graph ends, so that it is known of a stream that was left there."""
        self._sink = sink
        self._texts = texts
        self._last_nodes = last_nodes
        self._used: OrderedDict[int, None] = OrderedDict()
        self._ignored: set[int] = set()
        """Ids of runs that another recorder writes to the same place."""
        self._begun, self._hints = time.perf_counter(), True
        _recorders.add(self)
        self._in_order = threading.Lock()
        # Keyed by the ids' integers: a UUID is hashed in Python, ten times a call.
        self._places: dict[int, Place] = {}
        self._requests: dict[int, tuple[Place, RecordedRequest]] = {}
        self._tools: dict[int, tuple[Place, str, str, Any]] = {}

    # Chains: the run itself, and the attempts of its nodes.

    def on_chain_start(
        self, serialized: dict[str, Any] | None, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        about = metadata or {}
        if self._is_recorded_elsewhere(run_id, parent_run_id):
            return
        above = self._places.get(parent_run_id.int) if parent_run_id is not None else None
        if above is None:
            run = self._begin(run_id, about, str(kwargs.get("name") or ""))
            run.input = copied(inputs)
            self._places[run_id.int] = Place(run, None, False)
            return
        node, namespace = about.get("langgraph_node"), str(about.get("langgraph_checkpoint_ns", ""))
        same = above.attempt is not None and above.attempt.namespace == namespace
        if node is None or same or not namespace:
            self._places[run_id.int] = Place(above.run, above.attempt, False)
            return
        number = above.run.attempts.get(namespace, 0) + 1
        above.run.attempts[namespace] = number
        attempt = Attempt(str(node), namespace, number, above.attempt)
        if above.attempt is None:
            above.run.at_end = False
        self._places[run_id.int] = Place(above.run, attempt, True)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._ignored.discard(run_id.int)
        place = self._places.pop(run_id.int, None)
        if place is None:
            return
        self._note_end(place, outputs)
        if place.run.requested or place.run.failed:
            update = outputs.update if isinstance(outputs, Command) else outputs
            messages = update.get("messages") if isinstance(update, dict) else None
            self._answered_by_hand(place.run, messages)
        if place.opens and isinstance(outputs, dict):
            # Whose conversation it is: a run that fails later ends without a state to read it from.
            session = outputs.get("session")
            if isinstance(session, dict) and session.get("customer"):
                place.run.customer = str(session["customer"])
        if place.run.root == run_id.int:
            self._end(place.run, outputs, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._ignored.discard(run_id.int)
        place = self._places.pop(run_id.int, None)
        if place is None:
            return
        if isinstance(error, GraphInterrupt) and place.opens and is_own(place):
            place.run.waiting = True
        bubbles = isinstance(
            error, GraphBubbleUp
        )  # an interrupt or a command to the graph above: no error
        if place.opens and place.attempt is not None and not bubbles and place.attempt.calls:
            self._sink.discard(place.run.trace.id, tuple(place.attempt.calls))
        if place.run.root == run_id.int:
            self._end(place.run, None, None if bubbles else error)

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        place = self._places.get(event.run_id.int) if event.run_id is not None else None
        if place is not None and event.run_id is not None and place.run.root == event.run_id.int:
            place.run.waiting = True
            place.run.waits_for = tuple(event.interrupts)

    # Model calls.

    def on_chat_model_start(
        self, serialized: dict[str, Any] | None, messages: list[list[BaseMessage]], *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self._model_starts(messages[0], run_id, parent_run_id, metadata, kwargs)

    def on_llm_start(
        self, serialized: dict[str, Any] | None, prompts: list[str], *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self._model_starts([HumanMessage(prompts[0])], run_id, parent_run_id, metadata, kwargs)

    def _model_starts(
        self, messages: list[BaseMessage], run_id: UUID, parent: UUID | None, metadata: dict[str, Any] | None,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        if self._is_recorded_elsewhere(run_id, parent):
            return
        place = self._place(run_id, parent, metadata or {}, options)
        parameters = options.get("invocation_params") or {}
        attempt = place.attempt
        call = RecordedRequest(
            node=attempt.node if attempt else "",
            namespace=attempt.namespace if attempt else "",
            attempt=attempt.number if attempt else 1,
            messages=list(messages),
            parameters=parameters,
            clock=time.perf_counter(),
        )
        self._requests[run_id.int] = (place, call)
        place.run.open.add(run_id.int)
        self._answered_by_hand(place.run, messages)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        known = self._requests.pop(run_id.int, None)
        if known is None:
            return
        place, call = known
        seconds = time.perf_counter() - call.clock
        generation = next((choice for choices in response.generations for choice in choices), None)
        message = (
            generation.message
            if isinstance(generation, ChatGeneration)
            else AIMessage(generation.text if generation is not None else "")
        )
        about = message.response_metadata
        # A streamed answer has its id on the message alone.
        own_id = about.get("id") or (response.llm_output or {}).get("id")
        given = str(message.id or "")
        response_id = str(
            own_id or (given if not given.startswith(("run-", "lc_run-")) else "") or run_id
        )
        tokens = fetch(response_id)
        make = partial(answered, call, message, response_id, tokens, seconds, self._texts)
        self._add_call(place, make)
        for request in getattr(message, "tool_calls", ()):
            place.run.requested[str(request["id"])] = (request["name"], request["args"])
        self._ended(run_id, place, message, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        known = self._requests.pop(run_id.int, None)
        if known is None:
            return
        place, call = known
        seconds = time.perf_counter() - call.clock
        self._add_call(place, partial(unanswered, call, error, str(run_id), seconds, self._texts))
        self._ended(run_id, place, None, error)

    # Tools.

    def on_tool_start(
        self, serialized: dict[str, Any] | None, input_str: str, *, run_id: UUID,
        parent_run_id: UUID | None = None, metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        if self._is_recorded_elsewhere(run_id, parent_run_id):
            return
        place = self._place(run_id, parent_run_id, metadata or {}, kwargs)
        name = str((serialized or {}).get("name") or kwargs.get("name") or "")
        about = metadata or {}
        call = str(kwargs.get("tool_call_id") or about.get("tool_call_id") or run_id)
        place.run.requested.pop(call, None)
        self._places[run_id.int] = place
        self._tools[run_id.int] = (
            place,
            name,
            call,
            copied(input_str if inputs is None else inputs),
        )
        place.run.open.add(run_id.int)

    def on_retriever_start(
        self, serialized: dict[str, Any] | None, query: str, *, run_id: UUID, parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """A retriever counts as a tool with a query."""
        self.on_tool_start(
            serialized, query, run_id=run_id, parent_run_id=parent_run_id, metadata=metadata, inputs={"query": query},
            **kwargs,
        )  # fmt: skip

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        contents = [{"content": d.page_content, "metadata": d.metadata} for d in documents]
        self._tool_ended(run_id, {"documents": contents}, None)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._tool_ended(run_id, None, error)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._tool_ended(run_id, output, None)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._tool_ended(run_id, None, error)

    def _tool_ended(self, run_id: UUID, output: Any, error: BaseException | None) -> None:
        self._places.pop(run_id.int, None)
        known = self._tools.pop(run_id.int, None)
        if known is None:
            return
        place, name, call, inputs = known
        if isinstance(error, GraphBubbleUp):
            return  # it asks somebody, and runs again when it is answered
        if (earlier := place.run.failed.pop(call, None)) is not None:  # tried again by its node
            self._sink.add_tool(place.run.trace.id, partial(earlier, None))
        if error is not None and place.attempt is not None:
            place.run.failed[call] = partial(used, name, inputs, error=error, call=call)
        else:
            make = partial(used, name, inputs, copied(output), error, call=call)
            self._sink.add_tool(place.run.trace.id, make)
        self._ended(run_id, place, output, error)

    def _answered_by_hand(self, run: Run, messages: Any) -> None:
        """Keep the tool calls that these messages answer and no tool's run was seen of: a node called plain functions."""
        if not (run.requested or run.failed) or not isinstance(messages, list):
            return
        for message in messages:
            if not isinstance(message, ToolMessage):
                continue
            failed = run.failed.pop(message.tool_call_id, None)
            if failed is not None:
                self._sink.add_tool(run.trace.id, partial(failed, message))
            request = run.requested.pop(message.tool_call_id, None)
            if request is not None:
                make = partial(used, *request, message, call=message.tool_call_id)
                self._sink.add_tool(run.trace.id, make)

    # Runs.

    def _place(
        self, run_id: UUID, parent: UUID | None, about: dict[str, Any], options: dict[str, Any]
    ) -> Place:
        """The place of a call; a call outside a graph is a run of its own."""
        above = self._places.get(parent.int) if parent is not None else None
        if above is not None:
            return above
        return Place(self._begin(run_id, about, str(options.get("name") or "")), None, False)

    def follows(self, run_id: UUID) -> bool:
        """Whether this recorder writes that run."""
        return run_id.int in self._places

    def _is_recorded_elsewhere(self, run_id: UUID, parent: UUID | None) -> bool:
        """Whether another recorder, of a graph around this one, writes this run to the same place."""
        if parent is None or parent.int in self._places:
            return False
        known = parent.int in self._ignored or any(
            other.follows(parent)
            for other in _recorders
            if other is not self and _same_place(other, self)
        )
        if known:
            self._ignored.add(run_id.int)
        return known

    def _note_end(self, place: Place, outputs: Any) -> None:
        """Whether the run is at its end with this node: a route to it, a Command to it, or a node that nothing follows."""
        if not is_own(place):
            return
        attempt = place.attempt
        to = outputs.goto if isinstance(outputs, Command) else outputs
        if (
            to == END
            or to == [END]
            or (place.opens and attempt is not None and attempt.node in self._last_nodes)
        ):
            place.run.at_end = True

    def _id_of(self, root: UUID) -> str:
        """The trace's id: the run's, unless an app gave the same one to an earlier run."""
        again = root.int in self._used
        self._used[root.int] = None
        while len(self._used) > MAX_IDS:
            self._used.popitem(last=False)
        return uuid4().hex if again else root.hex

    def _begin(self, root: UUID, about: dict[str, Any], name: str) -> Run:
        trace = Trace(
            id=self._id_of(root),
            thread=str(about.get("thread_id") or ""),
            customer=str(about.get("customer") or about.get("user_id") or ""),
            graph=name,
            started=time.time(),
        )
        self._sink.begin(trace)
        return Run(trace, root.int, time.perf_counter())

    def _ended(self, run_id: UUID, place: Place, output: Any, error: BaseException | None) -> None:
        place.run.open.discard(run_id.int)
        if place.run.root == run_id.int:
            self._end(place.run, output, error)

    def _end(self, run: Run, output: Any, error: BaseException | None) -> None:
        seconds = time.perf_counter() - run.clock
        for number in list(run.open):  # begun and never ended: the run was left, or broke off
            self._places.pop(number, None)
            self._tools.pop(number, None)
            known = self._requests.pop(number, None)
            if known is not None:
                place, call = known
                left = RuntimeError("the run ended before the model answered")
                waited = time.perf_counter() - call.clock
                make_call = partial(
                    unanswered, call, left, UUID(int=number).hex, waited, self._texts
                )
                self._add_call(place, make_call)
        trace = run.trace.model_copy(update={"customer": run.customer or run.trace.customer})
        self._hint()
        status: Status | None = None
        if error is not None and not isinstance(error, Exception):
            # Who listened has left: the run is what it was then.
            status = "waiting" if run.waiting else "completed" if run.at_end else "interrupted"
        elif run.waiting and error is None:
            status = "waiting"
        for failed in run.failed.values():
            self._sink.add_tool(run.trace.id, partial(failed, None))
        make = partial(
            finished,
            trace,
            run.input,
            copied(output),
            error,
            status,
            seconds,
            interrupts_of(run.waits_for),
        )
        self._sink.end(run.trace.id, make)

    def _hint(self) -> None:
        """Say once that calls were made of which no callback told."""
        if self._hints and unclaimed(self._begun):
            self._hints = False
            logging.getLogger(__name__).warning(HINT)

    def _add_call(self, place: Place, make: Callable[[], ModelCall]) -> None:
        with self._in_order:  # nodes of a sync graph run in threads: numbers are those of the store
            number = place.run.calls
            place.run.calls += 1
            self._sink.add_call(place.run.trace.id, number, make)
        above = place.attempt
        while above is not None:
            above.calls.append(number)
            above = above.above


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _same_place(first: Recorder, second: Recorder) -> bool:
    sinks = [getattr(recorder._sink, "inner", recorder._sink) for recorder in (first, second)]
    return sinks[0] is sinks[1]
