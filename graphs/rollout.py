"""A roll-out is one episode: a scenario played to its end on a clone of its shop, kept as a trace."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import convert_to_openai_messages
from langgraph.checkpoint.memory import InMemorySaver

from stateset_agents.graphs import conversation, service
from stateset_agents.graphs.conversation import ConversationContext
from stateset_agents.graphs.ending import ending
from stateset_agents.nodes.customer import simulate
from stateset_agents.policy import Policy
from stateset_agents.recorder import Recorder
from stateset_agents.scenario import Scenario
from stateset_agents.tools.world import generate
from stateset_agents.trace import Sampling, ToolCall, Trace

_conversation = conversation.build()


async def converse(
    scenario: Scenario, policy: BaseChatModel, sampling: Sampling, *, max_turns: int | None = None
) -> Trace:
    """Play a scenario with the service graph and return its trace; a failure is a trace as well."""
    shop = generate(
        scenario.shop_seed, "train" if scenario.split == "user" else scenario.split
    ).clone()
    recorder = Recorder()
    model: BaseChatModel = (
        policy.sampling(sampling, recorder.sink) if isinstance(policy, Policy) else policy
    )
    thread = "episode"
    saver = InMemorySaver()
    agent = service.build(saver)
    context = ConversationContext(
        customer=simulate(scenario),
        agent=agent,
        agent_context=service.context(model, service.over(shop), thread=thread),
        thread=thread,
        max_turns=max_turns or scenario.max_turns,
        step_limit=service.STEP_LIMIT,
    )
    end = await ending(
        _conversation.ainvoke(
            {"turns": 0},
            {"callbacks": [recorder], "recursion_limit": 4 * context.max_turns + 4},
            context=context,
        )
    )
    state: dict[str, Any] = (await agent.aget_state({"configurable": {"thread_id": thread}})).values
    changes = shop.changes()
    shop.close()
    return Trace(
        scenario=scenario,
        graph="service",
        status="truncated" if end.state.get("truncated") else end.status,
        error=end.error,
        sampling=sampling,
        messages=tuple(convert_to_openai_messages(state.get("messages", []))),
        model_calls=tuple(recorder.calls),
        tool_calls=tuple(ToolCall.model_validate(call) for call in state.get("tool_calls", [])),
        changes=changes,
        started=end.started,
        seconds=end.seconds,
    )
