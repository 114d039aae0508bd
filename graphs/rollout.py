"""A roll-out is one episode: a scenario played to its end on a clone of its shop, kept as a trace."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, convert_to_openai_messages
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from stateset_agents.graphs import conversation, orchestrator
from stateset_agents.graphs.agent import STEP_LIMIT, build, over
from stateset_agents.graphs.agent import context as context_of
from stateset_agents.graphs.conversation import ConversationContext
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.forking import Episode, Point, Points
from stateset_agents.graphs.run_result import ending
from stateset_agents.nodes.customer import CustomerSimulator, simulate
from stateset_agents.policy.chat_model import reading, sampling_as
from stateset_agents.scenario import Scenario
from stateset_agents.tools.backend import Backend
from stateset_agents.tools.shop.accounting import books, segment
from stateset_agents.tools.shop.arrange import arrange_all
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.trace import Sampling, ToolCall, Trace
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.sink import Episode as Calls

_conversation = conversation.build()


@dataclass(frozen=True, slots=True)
class _World:
    """All that an episode has beside the state of its graph."""

    shop: Shop
    customer: CustomerSimulator

    def close(self) -> None:
        self.shop.close()


async def converse(
    scenario: Scenario,
    policy: BaseChatModel,
    sampling: Sampling,
    *,
    graph: str | None = None,
    customer: BaseChatModel | None = None,
    max_turns: int | None = None,
    around: Callable[[Backend], Backend] | None = None,
    texts: bool = False,
) -> Trace:
    """Play a scenario with the agent whose business it is, or the graph named; a failure is a trace as well.
    `customer` is a chat model to play the customer, in the place of rules; `around` is put around the backend of an
    agent that acts alone. With `texts` each call keeps its messages, which its tokens say as well where it has any."""
    with reading(policy, sampling):
        trace, _ = await _played(
            scenario, policy, sampling, graph, customer, max_turns, around, texts=texts
        )
    return trace


async def hold(
    scenario: Scenario,
    policy: BaseChatModel,
    sampling: Sampling,
    *,
    graph: str | None = None,
    customer: BaseChatModel | None = None,
    max_turns: int | None = None,
) -> Episode:
    """As `converse`, with what it takes to fork the episode at any decision. Close it when that is done."""

    async def again(sampling: Sampling, point: Point) -> Trace:
        with reading(policy, sampling):
            trace, _ = await _played(
                scenario, policy, sampling, graph, customer, max_turns, None, start=point
            )
        return trace

    with reading(policy, sampling):
        trace, points = await _played(
            scenario, policy, sampling, graph, customer, max_turns, None, held=True
        )
    return Episode(trace, points, again)


async def _played(
    scenario: Scenario,
    policy: BaseChatModel,
    sampling: Sampling,
    graph: str | None,
    customer: BaseChatModel | None,
    max_turns: int | None,
    around: Callable[[Backend], Backend] | None,
    *,
    held: bool = False,
    texts: bool = False,
    start: Point | None = None,
) -> tuple[Trace, list[Point]]:
    """An episode from its beginning, or on from a point of another one; `held`, with its own points."""
    name = graph or scenario.graph
    thread = "episode"
    if start is None:
        split = "train" if scenario.split == "user" else scenario.split
        shop = generate(scenario.shop_seed, split).clone()
        arrange_all(shop, scenario.arranged)
        saver, who = InMemorySaver(), simulate(scenario, customer)
    else:
        shop, saver, who = (
            start.world.shop.clone(),
            await start.branch(),
            start.world.customer.copy(),
        )
    kept = Calls()
    model = sampling_as(policy, sampling)
    agent: CompiledStateGraph[Any, Any, Any, Any]
    if name == orchestrator.NAME:
        agent, limit = orchestrator.build(saver), orchestrator.STEP_LIMIT
        agents = orchestrator.context(
            model, orchestrator.over(shop), thread=thread, role=DOMAINS[scenario.graph].role
        )
    else:
        domain = DOMAINS[name]
        agent, limit = build(domain, saver), STEP_LIMIT
        backend: Backend = over(domain, shop)
        backend = around(backend) if around else backend
        agents = context_of(domain, model, backend, thread=thread)
    context = ConversationContext(
        customer=who,
        agent=agent,
        agent_context=agents,
        thread=thread,
        max_turns=max_turns or scenario.max_turns,
        step_limit=limit,
        held=held,
    )
    began = _turns(start) if start is not None else 0
    points = Points(saver, thread, lambda: _World(shop.clone(), who.copy()), lambda: kept.calls)
    listening: list[BaseCallbackHandler] = [Recorder(kept, texts=texts)]
    end = await ending(
        _conversation.ainvoke(
            {"turns": began, "forked": start is not None},
            {
                "callbacks": [*listening, points] if held else listening,
                "recursion_limit": 4 * context.max_turns + 4,
            },
            context=context,
        )
    )
    state: dict[str, Any] = (await agent.aget_state({"configurable": {"thread_id": thread}})).values
    changes = shop.changes()
    came_to, whose = books(shop, scenario, changes), segment(shop, scenario)
    shop.close()
    trace = Trace(
        scenario=scenario,
        graph=name,
        status="truncated" if end.state.get("truncated") else end.status,
        error=end.error,
        sampling=sampling,
        messages=tuple(convert_to_openai_messages(state.get("messages", []))),
        model_calls=(*(start.calls if start is not None else ()), *kept.calls),
        tool_calls=tuple(ToolCall.model_validate(call) for call in state.get("tool_calls", [])),
        changes=changes,
        books=came_to,
        segment=whose,
        started=end.started,
        seconds=end.seconds,
    )
    return trace, points.taken


def _turns(point: Point) -> int:
    """How often the customer had spoken there."""
    said = point.checkpoint.checkpoint["channel_values"].get("messages", [])
    return sum(isinstance(message, HumanMessage) for message in said)
