"""The node that chooses the agent for a conversation."""

import json

from langchain_core.messages import AIMessage, AnyMessage, SystemMessage, ToolMessage
from langgraph.graph import END
from langgraph.runtime import Runtime
from langgraph.types import Command

from stateset_agents.nodes.agent import TRANSFER
from stateset_agents.nodes.state import Agents, AgentState, Bound, agents_of

NAME = "orchestrator"


class TeamState(AgentState, total=False):
    """What all agents of a conversation share, and which agent has it now."""

    active: str


class Router:
    """The node that passes a conversation on."""

    def __init__(self, bound: Bound | None = None) -> None:
        self.bound = bound

    async def route(self, state: TeamState, runtime: Runtime[Agents]) -> Command[str]:
        """Ask the policy for the agent; a reply without a transfer goes to the customer."""
        context = agents_of(runtime, self.bound).team[NAME]
        answer = await context.policy.ainvoke([SystemMessage(context.prompt), *state["messages"]])
        chosen = [c["args"].get("agent") for c in answer.tool_calls if c["name"] == TRANSFER]
        to = next((name for name in chosen if name in context.colleagues), None)
        if to is None:
            return Command(goto=END, update={"messages": [AIMessage(answer.text, id=answer.id)]})
        passed = json.dumps({"passed_to": to})
        messages: list[AnyMessage] = [
            ToolMessage(passed, tool_call_id=call["id"]) for call in answer.tool_calls
        ]
        return Command(goto=to, update={"messages": [answer, *messages], "active": to})


def first(state: TeamState) -> str:
    """A conversation stays with the agent that has it."""
    return state.get("active") or "route"
