"""A roll-out is one episode: a scenario played to its end on a clone of its shop, kept as a trace."""

from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import convert_to_openai_messages
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from stateset_agents.graphs import conversation, orchestrator
from stateset_agents.graphs.agent import STEP_LIMIT, build, over
from stateset_agents.graphs.agent import context as context_of
from stateset_agents.graphs.conversation import ConversationContext
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.graphs.ending import ending
from stateset_agents.nodes.customer import simulate
from stateset_agents.policy import Policy
from stateset_agents.scenario import Scenario
from stateset_agents.tools.backend import Backend
from stateset_agents.tools.books import books, segment
from stateset_agents.tools.complications import arrange_all
from stateset_agents.tools.world import generate
from stateset_agents.trace import Sampling, ToolCall, Trace
from stateset_agents.traces.keeper import Episode
from stateset_agents.traces.recorder import Recorder

_conversation = conversation.build()


async def converse(
    scenario: Scenario,
    policy: BaseChatModel,
    sampling: Sampling,
    *,
    graph: str | None = None,
    customer: BaseChatModel | None = None,
    max_turns: int | None = None,
    around: Callable[[Backend], Backend] | None = None,
) -> Trace:
    """Play a scenario with the agent whose business it is, or the graph named; a failure is a trace as well.
    `customer` is a chat model to play the customer, in the place of rules; `around` is put around the backend of an
    agent that acts alone."""
    name = graph or scenario.graph
    shop = generate(
        scenario.shop_seed, "train" if scenario.split == "user" else scenario.split
    ).clone()
    arrange_all(shop, scenario.arranged)
    episode = Episode()
    model: BaseChatModel = policy.sampling(sampling) if isinstance(policy, Policy) else policy
    thread = "episode"
    saver = InMemorySaver()
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
        customer=simulate(scenario, customer),
        agent=agent,
        agent_context=agents,
        thread=thread,
        max_turns=max_turns or scenario.max_turns,
        step_limit=limit,
    )
    end = await ending(
        _conversation.ainvoke(
            {"turns": 0},
            {
                "callbacks": [Recorder(episode, texts=False)],
                "recursion_limit": 4 * context.max_turns + 4,
            },
            context=context,
        )
    )
    state: dict[str, Any] = (await agent.aget_state({"configurable": {"thread_id": thread}})).values
    changes = shop.changes()
    came_to, whose = books(shop, scenario, changes), segment(shop, scenario)
    shop.close()
    return Trace(
        scenario=scenario,
        graph=name,
        status="truncated" if end.state.get("truncated") else end.status,
        error=end.error,
        sampling=sampling,
        messages=tuple(convert_to_openai_messages(state.get("messages", []))),
        model_calls=episode.calls,
        tool_calls=tuple(ToolCall.model_validate(call) for call in state.get("tool_calls", [])),
        changes=changes,
        books=came_to,
        segment=whose,
        started=end.started,
        seconds=end.seconds,
    )
