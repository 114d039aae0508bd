"""The state of an agent's graph, and the context of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
)
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_config
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict

from stateset_agents.errors import BadInput
from stateset_agents.tools.backend import Backend
from stateset_agents.tools.memory import Memory
from stateset_agents.tools.tool import Role, Session


def grown(before: list[Any], new: list[Any]) -> list[Any]:
    """A node returns additions to a list; an agent inside another graph returns the whole list."""
    return new if new[: len(before)] == before else before + new


class AgentState(TypedDict, total=False):
    """Plain data only, so that any checkpointer can store it."""

    messages: Annotated[list[AnyMessage], add_messages]
    session: Session
    tool_calls: Annotated[list[dict[str, Any]], grown]
    """Every attempt so far, as the fields of a ToolCall."""
    proposal: dict[str, Any] | None
    """A write that waits for the customer's confirmation."""
    handed_off: dict[str, Any] | None
    """What a person needs to take over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentContext:
    """The context of a run, which is not checkpointed."""

    policy: Runnable[LanguageModelInput, AIMessage]
    """A chat model with bound tools."""
    backend: Backend
    prompt: str
    thread: str
    guard: bool = False
    """Whether replies are checked against tool results and the customer's messages before the customer sees them."""
    customer: str = ""
    """Id of the signed-in customer; '' if the agent has to verify."""
    role: Role = "customer"
    """For whom the agent acts."""
    memory: Memory | None = None
    """Notes of the customer from earlier conversations."""
    colleagues: tuple[str, ...] = ()
    """Names of the agents that it may pass the conversation to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """The context of a graph with several agents: one for each, by name."""

    team: Mapping[str, AgentContext] = field(default_factory=dict)


Bound = Callable[[RunnableConfig], Agents]
"""Makes the context of a run from its config, if none was given."""


class Confirmation(BaseModel):
    """The answer to a proposed write."""

    model_config = ConfigDict(extra="forbid")

    confirmed: bool


def agents_of(runtime: Runtime[Agents], bound: Bound | None) -> Agents:
    """The run's context, or the one that is bound to its graph. Raises BadInput if there is neither."""
    agents = runtime.context
    if (agents is None or not agents.team) and bound is not None:
        agents = bound(get_config())
    if agents is None or not agents.team:
        raise BadInput(
            "Expected a context, found none: pass `context=` to the run, or make the graph with build_graph."
        )
    return agents
