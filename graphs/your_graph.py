"""A graph of one's own as a roll-out: any LangGraph graph that takes its chat model from outside."""

import time
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_core.runnables import Runnable
from langgraph.errors import GraphRecursionError

from stateset_agents.errors import BadInput, ContextFull, PolicyUnreachable
from stateset_agents.policy import Policy
from stateset_agents.recorder import Recorder
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Status, Trace


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
        recorder = Recorder()
        model = policy.sampling(sampling, recorder.sink) if isinstance(policy, Policy) else policy
        compiled = graph if is_graph else graph(model)
        opening = scenario.customer.opening or next(iter(scenario.customer.user_responses), "")
        given = scenario.input or {"messages": [HumanMessage(opening)]}
        started, clock = time.time(), time.perf_counter()
        status: Status = "completed"
        error, end = None, {}
        try:
            end = await compiled.ainvoke(
                given,
                {"callbacks": [recorder], "recursion_limit": step_limit},
                **({"context": {"policy": model}} if is_graph else {}),
            )
        except (GraphRecursionError, ContextFull) as problem:
            status, error = "truncated", str(problem)
        except PolicyUnreachable as problem:
            status, error = "failed", str(problem)
        except Exception as problem:  # noqa: BLE001 (not our graph: its failure is data)
            status, error = "failed", f"{type(problem).__name__}: {problem}"
        messages = [m for m in end.get("messages", []) if isinstance(m, BaseMessage)]
        return Trace(
            scenario=scenario,
            graph=name,
            status=status,
            error=error,
            sampling=sampling,
            messages=tuple(convert_to_openai_messages(messages)),
            model_calls=tuple(recorder.calls),
            output={k: v for k, v in end.items() if isinstance(v, str | int | float | bool)},
            started=started,
            seconds=time.perf_counter() - clock,
        )

    return rollout
