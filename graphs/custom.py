"""A graph of your own as a roll-out: any LangGraph graph that takes its chat model from outside."""

import inspect
from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from stateset_agents.errors import BadInput
from stateset_agents.graphs.forking import ForkableEpisode, Point, Points, checked_world
from stateset_agents.graphs.run_result import result_of
from stateset_agents.policy.chat_model import pinned, sampling_as
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.sink import CallBuffer


class CustomGraph:
    """Roll-outs of `graph`: a function of the chat model that returns a compiled graph, or a
    compiled graph that reads `runtime.context["policy"]`, and `runtime.context["world"]` where one is given.

    The run starts from the scenario's `input`, or from its opening as a user message. `world` makes the object that the nodes
    of an episode act on; forks get a clone of it. If `graph` is a function with a second parameter, it gets the world there.
    """

    def __init__(
        self, graph: Any, name: str, *, step_limit: int = 50, world: Callable[[Scenario], Any] | None = None
    ) -> None:  # fmt: skip
        if not callable(graph) and not isinstance(graph, Runnable):
            raise BadInput(
                f"Expected {name!r} to be a compiled LangGraph graph or a function of a chat model, "
                f"found {type(graph).__name__}."
            )
        self.graph, self.name, self.step_limit, self.world = graph, name, step_limit, world

    async def play_episode(
        self, scenario: Scenario, policy: BaseChatModel, sampling: Sampling
    ) -> Trace:
        """One episode."""
        trace, _ = await self._play(scenario, policy, sampling)
        return trace

    async def play_forkable(
        self, scenario: Scenario, policy: BaseChatModel, sampling: Sampling
    ) -> ForkableEpisode:
        """One episode that can be forked. Raises BadInput if its world cannot be cloned."""

        async def fork(sampling: Sampling, point: Point) -> Trace:
            return (await self._play(scenario, policy, sampling, start=point))[0]

        trace, points = await self._play(scenario, policy, sampling, forkable=True)
        return ForkableEpisode(trace, points, fork)

    def _compiled(self, model: BaseChatModel, world: Any) -> Any:
        if isinstance(self.graph, Runnable):
            return self.graph
        takes = inspect.signature(self.graph).parameters
        return self.graph(model, world) if self.world and len(takes) > 1 else self.graph(model)

    async def _play(
        self, scenario: Scenario, policy: BaseChatModel, sampling: Sampling, *, forkable: bool = False,
        start: Point | None = None,
    ) -> tuple[Trace, list[Point]]:  # fmt: skip
        buffer, thread = CallBuffer(), "episode"
        model = sampling_as(policy, sampling)
        world: Any = None
        if start is not None:
            world = start.world and start.world.clone()
        elif self.world is not None:
            world = self.world(scenario)
            world = checked_world(world) if forkable else world
        compiled = self._compiled(model, world)
        saver = await start.branch() if start is not None else InMemorySaver()
        points = Points(saver, thread, lambda: world and world.clone(), lambda: buffer.calls)
        config: RunnableConfig = {
            "callbacks": [Recorder(buffer, texts=False)],
            "recursion_limit": self.step_limit,
        }
        options: dict[str, Any] = {}
        if (
            forkable or start is not None
        ):  # as a copy: the graph's own checkpointer is for its own threads
            compiled = compiled.copy({"checkpointer": saver})
            config["configurable"] = {"thread_id": thread}
            options["durability"] = "sync"
        if forkable:
            config["callbacks"] = [Recorder(buffer, texts=False), points]
        if isinstance(self.graph, Runnable):
            options["context"] = {"policy": model, **({"world": world} if self.world else {})}
        opening = scenario.customer.opening or next(iter(scenario.customer.user_responses), "")
        given = scenario.input or {"messages": [HumanMessage(opening)]}
        with pinned(policy, sampling):
            result = await result_of(
                compiled.ainvoke(given if start is None else None, config, **options)
            )
        messages = [m for m in result.state.get("messages", []) if isinstance(m, BaseMessage)]
        changes = getattr(world, "changes", None)
        trace = Trace(
            scenario=scenario,
            graph=self.name,
            status=result.status,
            error=result.error,
            sampling=sampling,
            messages=tuple(convert_to_openai_messages(messages)),
            model_calls=(*(start.calls if start is not None else ()), *buffer.calls),
            changes=tuple(changes()) if callable(changes) else (),
            output={
                k: v for k, v in result.state.items() if isinstance(v, str | int | float | bool)
            },
            started=result.started,
            seconds=result.seconds,
        )
        return trace, points.taken
