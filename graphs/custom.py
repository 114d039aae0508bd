"""A graph of your own as a roll-out: any LangGraph graph that takes its chat model from outside."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from stateset_agents.errors import BadInput
from stateset_agents.graphs import conversation
from stateset_agents.graphs.conversation import ConversationContext, ConversationState, ending
from stateset_agents.graphs.copies import CopySerializer
from stateset_agents.graphs.forking import (
    ForkableEpisode,
    Point,
    Points,
    checked_world,
    close_world,
    turns_before,
)
from stateset_agents.graphs.run_result import RunResult, result_of
from stateset_agents.nodes.customer import CustomerSimulator, RuleCustomer, simulate
from stateset_agents.policy.chat_model import pinned, sampling_as
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.conversion import merged, openai_messages, output_of, own_tools
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.sink import CallBuffer

THREAD = "episode"


@dataclass(frozen=True, slots=True)
class _Setting:
    """What an episode has besides the state of its graph."""

    world: Any
    customer: CustomerSimulator

    def clone(self) -> "_Setting":
        world = self.world.clone() if self.world is not None else None
        return _Setting(world, getattr(world, "customer", None) or self.customer.copy())

    async def close(self) -> None:
        await close_world(self.world)


class CustomGraph:
    """Roll-outs of `graph`: a function of the chat model that returns a compiled graph, or a
    compiled graph that reads `runtime.context["policy"]`, and `runtime.context["world"]` where one is given.

    The first run starts from the scenario's `input`, or from its opening as a user message. The scenario's customer answers what
    the graph asks in interrupts, and speaks on where it has more to say: further `user_responses`, an answer to a question, or
    `customer`, a chat model that plays it. `world`, plain or async, makes the object that the nodes of an episode act on; forks get a
    clone of it, it is closed at the end if it has `close`, and if it has a `customer`, that one is asked. If `graph` is a function with a
    second parameter, it gets the world there.
    """

    def __init__(
        self,
        graph: Any,
        name: str,
        *,
        step_limit: int = 50,
        world: Callable[[Scenario], Any] | None = None,
        customer: BaseChatModel | None = None,
    ) -> None:
        check_graph(graph, name)
        self.graph, self.name, self.step_limit, self.world = graph, name, step_limit, world
        self.customer = customer

    async def play_episode(
        self, scenario: Scenario, policy: BaseChatModel, sampling: Sampling, *, texts: bool = False
    ) -> Trace:
        """One episode. With `texts` each call keeps its messages too, besides its tokens."""
        trace, _ = await self._play(scenario, policy, sampling, texts=texts)
        return trace

    async def play_forkable(
        self, scenario: Scenario, policy: BaseChatModel, sampling: Sampling
    ) -> ForkableEpisode:
        """One episode that can be forked. Raises BadInput if its world cannot be cloned."""

        async def fork(sampling: Sampling, point: Point) -> Trace:
            return (await self._play(scenario, policy, sampling, start=point))[0]

        trace, points = await self._play(scenario, policy, sampling, forkable=True)
        return ForkableEpisode(trace, points, fork)

    def _compiled(self, model: BaseChatModel, world: Any, saver: InMemorySaver) -> Any:
        graph = self.graph
        if not isinstance(graph, Runnable):
            takes = inspect.signature(graph).parameters
            graph = graph(model, world) if self.world and len(takes) > 1 else graph(model)
        if isinstance(graph, Pregel):
            check_breakpoints(graph, self.name)
        # As a copy: the graph's own checkpointer is for its own threads.
        return graph.copy({"checkpointer": saver}) if isinstance(graph, Pregel) else graph

    async def _setting(self, scenario: Scenario, start: Point | None, forkable: bool) -> _Setting:
        """A new world and customer, or copies of those of the point that an episode starts from."""
        if start is not None:
            setting: _Setting = start.world.clone()
            return setting
        world = self.world(scenario) if self.world is not None else None
        if inspect.isawaitable(world):
            world = await world
        if world is not None and forkable:
            try:
                checked_world(world)
            except BadInput:
                await close_world(world)
                raise
        own = getattr(world, "customer", None)
        return _Setting(world, own or _customer(scenario, self.customer))

    async def _play(
        self, scenario: Scenario, policy: BaseChatModel, sampling: Sampling, *, forkable: bool = False,
        start: Point | None = None, texts: bool = False,
    ) -> tuple[Trace, list[Point]]:  # fmt: skip
        buffer, model = CallBuffer(), sampling_as(policy, sampling)
        setting = await self._setting(scenario, start, forkable)
        points = None
        try:
            saver = await _saver(start, forkable)
            graph = self._compiled(model, setting.world, saver)
            points = Points(saver, THREAD, setting.clone, lambda: buffer.calls)
            context: Any = None
            if isinstance(self.graph, Runnable):
                context = {"policy": model, **({"world": setting.world} if self.world else {})}
            talk = ConversationContext(
                customer=setting.customer, agent=graph, agent_context=context, thread=THREAD,
                max_turns=scenario.max_turns, step_limit=self.step_limit, forkable=forkable,
            )  # fmt: skip
            begun: ConversationState = {
                "turns": turns_before(start) if start is not None else 0,
                "forked": start is not None,
                "given": scenario.input if start is None else None,
            }
            recorder = Recorder(buffer, texts=texts or "answers")
            config: RunnableConfig = {
                "callbacks": [recorder, points] if forkable else [recorder],
                "recursion_limit": 4 * talk.max_turns + 4,
            }
            with pinned(policy, sampling):
                result = await result_of(
                    conversation.compiled().ainvoke(begun, config, context=talk)
                )
            state = await _last_state(graph, result)
            changes = getattr(setting.world, "changes", None)
            happened = tuple(changes()) if callable(changes) else ()
        except BaseException:
            if points is not None:
                await points.close_taken()
            raise
        finally:
            await setting.close()
            if points is not None:
                await points.close_unused()
        calls = tuple(buffer.calls)
        if state.get("messages") and not texts:  # which have the answers
            calls = tuple(call.model_copy(update={"answer": None}) for call in calls)
        trace = Trace(
            scenario=scenario,
            graph=self.name,
            sampling=sampling,
            messages=_messages(state),
            model_calls=(*(start.calls if start is not None else ()), *calls),
            tool_calls=merged(own_tools(state), buffer.tools),
            changes=happened,
            output=output_of(result.state.get("output")),
            started=result.started,
            seconds=result.seconds,
            **ending(result),
        )
        return trace, points.taken


def check_graph(graph: Any, name: str) -> None:
    """Raises BadInput unless it is a compiled graph, another runnable, or a function that can make one."""
    if isinstance(graph, StateGraph):
        raise BadInput(
            f"Expected {name!r} to be compiled, found a StateGraph: call `compile()` on it."
        )
    if inspect.iscoroutinefunction(graph) or inspect.isasyncgenfunction(graph):
        raise BadInput(
            f"Expected {name!r} to be a plain function of a chat model, found an async one."
        )
    if not callable(graph) and not isinstance(graph, Runnable):
        raise BadInput(
            f"Expected {name!r} to be a compiled LangGraph graph or a function of a chat model, "
            f"found {type(graph).__name__}."
        )


def check_breakpoints(graph: Pregel[Any, Any, Any, Any], name: str) -> None:
    """Raises BadInput for a graph that stops at nodes of its own choice: nobody goes on from there, and its act would be left out."""
    inner = [part for _, part in graph.get_subgraphs(recurse=True) if isinstance(part, Pregel)]
    for part in (graph, *inner):
        stops = [part.interrupt_before_nodes, part.interrupt_after_nodes]
        if any(stops):
            raise BadInput(
                f"Expected {name!r} to ask with `interrupt()`, found breakpoints (interrupt_before or interrupt_after), at which "
                "nobody could answer: compile it without them."
            )


def _customer(scenario: Scenario, model: BaseChatModel | None) -> CustomerSimulator:
    """The scenario's customer. One that knows nothing to answer with leaves after the opening."""
    customer = scenario.customer
    if model is not None or customer.user_responses or customer.slots or customer.then:
        return simulate(scenario, model)
    return RuleCustomer(customer.model_copy(update={"patience": 0}))


async def _saver(start: Point | None, forkable: bool) -> InMemorySaver:
    """The checkpointer of an episode. Forks need state that can be written down; otherwise any state will do."""
    if start is not None:
        return await start.branch()
    return InMemorySaver() if forkable else InMemorySaver(serde=CopySerializer())


async def _last_state(graph: Any, result: RunResult) -> dict[str, Any]:
    """What the graph returned last; of a run that failed, the state that it had come to."""
    output = result.state.get("output")
    if output is None and isinstance(graph, Pregel):
        output = (await graph.aget_state({"configurable": {"thread_id": THREAD}})).values
    return output if isinstance(output, dict) else {}


def _messages(state: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    messages = state.get("messages")
    known = (
        [m for m in messages if isinstance(m, BaseMessage)] if isinstance(messages, list) else []
    )
    return openai_messages(known)
