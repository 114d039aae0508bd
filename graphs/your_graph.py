"""A graph of one's own as a roll-out: any LangGraph graph that takes its chat model from outside."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_core.runnables import Runnable

from stateset_agents.errors import BadInput
from stateset_agents.graphs.ending import ending
from stateset_agents.policy import Policy
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.keeper import Episode
from stateset_agents.traces.recorder import Recorder


def own_graph(graph: Any, name: str, *, step_limit: int = 50) -> Any:
    """A roll-out for `graph`: a function of the chat model that returns a compiled graph, or a
    compiled graph that reads `runtime.context["policy"]`.

    The run starts from the scenario's `input`, or from its opening as a user message.
    """
    if not callable(graph) and not isinstance(graph, Runnable):
        raise BadInput(
            f"Expected {name!r} to be a compiled LangGraph graph or a function of a chat model, "
            f"found {type(graph).__name__}."
        )
    is_graph = isinstance(graph, Runnable)

    async def rollout(scenario: Scenario, policy: BaseChatModel, sampling: Sampling) -> Trace:
        episode = Episode()
        model = policy.sampling(sampling) if isinstance(policy, Policy) else policy
        compiled = graph if is_graph else graph(model)
        opening = scenario.customer.opening or next(iter(scenario.customer.user_responses), "")
        given = scenario.input or {"messages": [HumanMessage(opening)]}
        end = await ending(
            compiled.ainvoke(
                given,
                {"callbacks": [Recorder(episode, texts=False)], "recursion_limit": step_limit},
                **({"context": {"policy": model}} if is_graph else {}),
            )
        )
        messages = [m for m in end.state.get("messages", []) if isinstance(m, BaseMessage)]
        return Trace(
            scenario=scenario,
            graph=name,
            status=end.status,
            error=end.error,
            sampling=sampling,
            messages=tuple(convert_to_openai_messages(messages)),
            model_calls=episode.calls,
            output={k: v for k, v in end.state.items() if isinstance(v, str | int | float | bool)},
            started=end.started,
            seconds=end.seconds,
        )

    return rollout
