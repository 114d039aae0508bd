"""What the endpoint serves: a graph, its context for a turn, and which of its words reach the customer."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel

from stateset_agents.nodes.state import Agents
from stateset_agents.server.http import Refusal

Graph = Pregel[Any, Any, Any, Any]
Compile = Callable[[BaseCheckpointSaver[str]], Graph]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client asks of a turn besides its messages."""

    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of the policy: temperature, top_p, seed, max_tokens."""
    instructions: str = ""
    """Its system and developer messages."""
    goes_on: bool = False
    """The conversation has had turns before, perhaps in another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A named graph."""

    begin: Callable[[BaseCheckpointSaver[str], str, Wishes], tuple[Graph, Any]]
    """The graph with a checkpointer, and the context of a thread's turn. Raises Refusal for wishes that it cannot meet."""
    step_limit: int
    speakers: frozenset[str] | None = None
    """Nodes whose words reach the customer, as they are sampled; None: every node; none: the last message of the turn alone."""
    ended: Callable[[str, dict[str, Any] | None], None] = lambda thread, state: None
    """Called after every turn with its thread and final state, or None if it failed."""


def served_agents(
    *,
    compile: Compile,
    context: Callable[[str], Agents],
    step_limit: int,
    ended: Callable[[str, dict[str, Any] | None], None] = lambda thread, state: None,
) -> Served:
    """Agents of ours. A client's instructions stand below their own rules, which the tools enforce whatever the prompt says."""
    return Served(
        begin=lambda saver, thread, wishes: (compile(saver), as_asked(context(thread), wishes)),
        step_limit=step_limit,
        ended=ended,
    )


def as_asked(context: Agents, wishes: Wishes) -> Agents:
    """Agents of ours with a client's sampling, and its instructions below their own rules."""
    if not (wishes.sampling or wishes.instructions):
        return context
    note = f"\nThe app that you work in asks, as far as the rules allow: {wishes.instructions}"
    team = {
        name: replace(
            agent,
            policy=agent.policy.bind(**wishes.sampling) if wishes.sampling else agent.policy,
            prompt=agent.prompt + (note if wishes.instructions else ""),
        )
        for name, agent in context.team.items()
    }
    return Agents(team=team)


def no_instructions(wishes: Wishes) -> None:
    """Raises Refusal for instructions to a graph whose prompts are its own."""
    if wishes.instructions:
        raise Refusal(
            400, "messages: this graph has its own prompts and takes no system or developer messages.", "unsupported_parameter",
            param="messages",
        )  # fmt: skip
