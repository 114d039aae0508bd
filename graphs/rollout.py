"""A roll-out is one episode: a scenario played to its end on a clone of its shop, kept as a trace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import convert_to_openai_messages
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from stateset_agents.graphs import conversation, orchestrator
from stateset_agents.graphs.agent import STEP_LIMIT, build, over
from stateset_agents.graphs.agent import context as context_of
from stateset_agents.graphs.conversation import ConversationContext, ConversationState, ending
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.forking import ForkableEpisode, Point, Points, turns_before
from stateset_agents.graphs.run_result import result_of
from stateset_agents.nodes.customer import CustomerSimulator, simulate
from stateset_agents.policy.chat_model import pinned, sampling_as
from stateset_agents.scenario import Scenario
from stateset_agents.tools.backend import Backend
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.accounting import books_of, segment_of
from stateset_agents.tools.shop.arrange import arrange_all
from stateset_agents.tools.shop.generate import Shops, generate
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.trace import Sampling, ToolCall, Trace
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.sink import CallBuffer


@dataclass(frozen=True, slots=True)
class _World:
    """The objects of an episode beside the state of its graph."""

    shop: Shop
    customer: CustomerSimulator

    def close(self) -> None:
        self.shop.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """Further options of an episode."""

    graph: str | None = None
    customer: BaseChatModel | None = None
    max_turns: int | None = None
    wrap_backend: Callable[[Backend], Backend] | None = None
    rules: Sequence[Rule] | None = None
    shops: Shops = generate
    texts: bool = False
    forkable: bool = False
    start: Point | None = None


async def play_episode(
    scenario: Scenario,
    policy: BaseChatModel,
    sampling: Sampling,
    *,
    graph: str | None = None,
    customer: BaseChatModel | None = None,
    max_turns: int | None = None,
    wrap_backend: Callable[[Backend], Backend] | None = None,
    rules: Sequence[Rule] | None = None,
    shops: Shops = generate,
    texts: bool = False,
) -> Trace:
    """Play a scenario with its own agent or the named graph, on a clone of its shop. Returns a trace, also for a failed episode. `customer` is a chat
    model that plays the customer instead of rules; `wrap_backend` wraps the backend of a single agent. With `texts` each call
    keeps its messages too, besides its tokens."""
    options = _Options(
        graph=graph,
        customer=customer,
        max_turns=max_turns,
        wrap_backend=wrap_backend,
        rules=rules,
        shops=shops,
        texts=texts,
    )
    trace, _ = await _play(scenario, policy, sampling, options)
    return trace


async def play_forkable(
    scenario: Scenario,
    policy: BaseChatModel,
    sampling: Sampling,
    *,
    graph: str | None = None,
    customer: BaseChatModel | None = None,
    max_turns: int | None = None,
    rules: Sequence[Rule] | None = None,
    shops: Shops = generate,
) -> ForkableEpisode:
    """Like `play_episode`, for an episode that can be forked at any decision. Close it afterwards."""
    options = _Options(
        graph=graph, customer=customer, max_turns=max_turns, rules=rules, shops=shops
    )

    async def fork(sampling: Sampling, point: Point) -> Trace:
        trace, _ = await _play(scenario, policy, sampling, replace(options, start=point))
        return trace

    trace, points = await _play(scenario, policy, sampling, replace(options, forkable=True))
    return ForkableEpisode(trace, points, fork)


async def _play(
    scenario: Scenario, policy: BaseChatModel, sampling: Sampling, options: _Options
) -> tuple[Trace, list[Point]]:
    """An episode from its beginning or from a point of another one, with its own points if it is forkable."""
    name, thread, start = options.graph or scenario.graph, "episode", options.start
    shop, saver, customer = await _setting(scenario, options)
    agent, context = _conversation_of(
        scenario, sampling_as(policy, sampling), name, shop, saver, customer, options
    )
    buffer = CallBuffer()
    points = Points(
        saver, thread, lambda: _World(shop.clone(), customer.copy()), lambda: buffer.calls
    )
    callbacks: list[BaseCallbackHandler] = [Recorder(buffer, texts=options.texts)]
    begun: ConversationState = {
        "turns": turns_before(start) if start is not None else 0,
        "forked": start is not None,
    }
    config: RunnableConfig = {
        "callbacks": [*callbacks, points] if options.forkable else callbacks,
        "recursion_limit": 4 * context.max_turns + 4,
    }
    with pinned(policy, sampling):
        result = await result_of(conversation.compiled().ainvoke(begun, config, context=context))
    state: dict[str, Any] = (await agent.aget_state({"configurable": {"thread_id": thread}})).values
    changes = shop.changes()
    books, segment = books_of(shop, scenario, changes), segment_of(shop, scenario)
    shop.close()
    await points.close_unused()
    trace = Trace(
        scenario=scenario,
        graph=name,
        **ending(result),
        sampling=sampling,
        messages=tuple(convert_to_openai_messages(state.get("messages", []))),
        model_calls=(*(start.calls if start is not None else ()), *buffer.calls),
        tool_calls=tuple(ToolCall.model_validate(call) for call in state.get("tool_calls", [])),
        changes=changes,
        books=books,
        segment=segment,
        started=result.started,
        seconds=result.seconds,
    )
    return trace, points.taken


async def _setting(
    scenario: Scenario, options: _Options
) -> tuple[Shop, InMemorySaver, CustomerSimulator]:
    """The shop, the checkpointer and the customer that an episode begins with: fresh ones, or those of the point that it starts
    from."""
    start = options.start
    if start is not None:
        return start.world.shop.clone(), await start.branch(), start.world.customer.copy()
    split = "train" if scenario.split == "user" else scenario.split
    shop = options.shops(scenario.shop_seed, split).clone()
    arrange_all(shop, scenario.arranged)
    return shop, InMemorySaver(), simulate(scenario, options.customer)


def _conversation_of(
    scenario: Scenario, model: BaseChatModel, name: str, shop: Shop, saver: InMemorySaver, customer: CustomerSimulator,
    options: _Options,
) -> tuple[CompiledStateGraph[Any, Any, Any, Any], ConversationContext]:  # fmt: skip
    """The agent's graph, and the context of a conversation with it."""
    agent: CompiledStateGraph[Any, Any, Any, Any]
    if name == orchestrator.NAME:
        agent, limit = orchestrator.build(saver), orchestrator.STEP_LIMIT
        agents = orchestrator.context(
            model,
            orchestrator.over(shop, options.rules),
            thread="episode",
            role=DOMAINS[scenario.graph].role,
        )
    else:
        domain = DOMAINS[name]
        agent, limit = build(domain, saver), STEP_LIMIT
        backend: Backend = over(domain, shop, options.rules)
        if options.wrap_backend is not None:
            backend = options.wrap_backend(backend)
        agents = context_of(domain, model, backend, thread="episode")
    return agent, ConversationContext(
        customer=customer,
        agent=agent,
        agent_context=agents,
        thread="episode",
        max_turns=options.max_turns or scenario.max_turns,
        step_limit=limit,
        forkable=options.forkable,
    )
