"""The nodes of an agent that serves a customer: identity, policy, tools, confirmation, hand-off.

All are async, also those that wait for nothing: LangGraph runs a plain function in a thread, where two
conversations could be on one database connection at once.
"""

import dataclasses
import json
import operator
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict

from stateset_agents.statements import unsupported
from stateset_agents.tools.backend import Backend
from stateset_agents.tools.executor import Outcome
from stateset_agents.tools.tool import Session

HOLDS = 2
"""How often a reply is held back before a person takes over."""


class ServiceState(TypedDict, total=False):
    """Plain data only, so that any checkpointer can hold it."""

    messages: Annotated[list[AnyMessage], add_messages]
    session: Session
    tool_calls: Annotated[list[dict[str, Any]], operator.add]
    """Every attempt so far, as the fields of a ToolCall."""
    proposal: dict[str, Any] | None
    """A write that waits for the customer's word."""
    handed_off: dict[str, Any] | None
    """What a person needs to take over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceContext:
    """What a run is given and does not checkpoint."""

    policy: Runnable[LanguageModelInput, AIMessage]
    """A chat model with the tools bound."""
    backend: Backend
    prompt: str
    thread: str
    guard: bool = False
    """Whether replies are held against what tools and the customer said before the customer sees them."""
    customer: str = ""
    """Id of the signed-in customer; '' where the agent has to verify."""


class Confirmation(BaseModel):
    """The answer to a proposed write."""

    model_config = ConfigDict(extra="forbid")

    confirmed: bool


async def identity(state: ServiceState, runtime: Runtime[ServiceContext]) -> ServiceState:
    """Start a session; a customer whom the host app signed in is verified already."""
    if "session" in state:
        return {}
    return {"session": Session(customer=runtime.context.customer)}


async def policy(state: ServiceState, runtime: Runtime[ServiceContext]) -> ServiceState:
    """Ask the policy what to do next. Guarded, a reply that states what nobody told the agent is held back
    and asked for again; who cannot do without is replaced by a person."""
    context, note, wrong = runtime.context, "", list[str]()
    # What may be held back must not be streamed to the customer while it is being written.
    options: RunnableConfig = {"tags": [TAG_NOSTREAM]} if context.guard else {}
    for _ in range(1 + HOLDS):
        asked = [SystemMessage(context.prompt + note), *state["messages"]]
        answer = await context.policy.ainvoke(asked, options)
        wrong = _unsupported(answer, state, context) if context.guard else []
        if not wrong:
            return {"messages": [answer]}
        note = (
            f" Your last reply was held back: no tool told you {', '.join(wrong)}. "
            "Say only what a tool told you, or use a tool."
        )
    reason = f"the agent would not answer without {', '.join(wrong)}"
    call = {
        "name": "escalate_to_human",
        "args": {"reason": reason},
        "id": f"guard-{uuid.uuid4().hex}",
    }
    return {"messages": [AIMessage("", tool_calls=[call])]}


def _unsupported(answer: AIMessage, state: ServiceState, context: ServiceContext) -> list[str]:
    attempts = [call for call in state.get("tool_calls", []) if call["status"] == "done"]
    written = {name for name, offer in context.backend.offers.items() if offer.writes}
    return unsupported(
        answer.text,
        customer=[m.text for m in state["messages"] if isinstance(m, HumanMessage)],
        tools=[m.text for m in state["messages"] if isinstance(m, ToolMessage)],
        acted=any(call["name"] in written for call in attempts),
    )


async def tools(state: ServiceState, runtime: Runtime[ServiceContext]) -> ServiceState:
    """Run the calls of the last message in order, up to the first write that needs confirmation."""
    session, backend = state["session"], runtime.context.backend
    asked = state["messages"]
    answered = {message.tool_call_id for message in asked if isinstance(message, ToolMessage)}
    last = next(message for message in reversed(asked) if isinstance(message, AIMessage))
    messages: list[AnyMessage] = []
    attempts: list[dict[str, Any]] = []
    proposal = None
    for call in last.tool_calls:
        if call["id"] in answered:
            continue
        outcome = await backend.propose(session, call["name"], call["args"])
        if outcome.status == "proposed":
            proposal = {"id": call["id"], "tool": call["name"], "arguments": call["args"]}
            if outcome.rule is not None:
                proposal["approval"] = outcome.rule
            break
        session = outcome.session
        messages.append(_answer(call["id"] or "", outcome))
        attempts.append(_attempt(call["id"] or "", call["name"], call["args"], outcome))
        if _hands_off(attempts[-1]):
            break  # whatever else was asked for is a person's business now
    return {
        "messages": messages,
        "tool_calls": attempts,
        "session": session,
        "proposal": proposal,
    }


async def confirm(state: ServiceState, runtime: Runtime[ServiceContext]) -> ServiceState:
    """Wait for the customer's word on a proposed write, and for a person's where a rule asks for it; then
    make exactly that write, or not."""
    proposal = state.get("proposal")
    assert proposal is not None
    asked = {"id": proposal["id"], "tool": proposal["tool"], "arguments": proposal["arguments"]}
    agreed = _answer_to({"type": "confirmation", **asked})
    rule = proposal.get("approval")
    approved = (
        agreed and rule is not None and _answer_to({"type": "approval", "rule": rule, **asked})
    )
    backend, session = runtime.context.backend, state["session"]
    name, arguments = proposal["tool"], proposal["arguments"]
    if agreed and (approved or rule is None):
        key = f"{runtime.context.thread}/{proposal['id']}"
        outcome = await backend.commit(
            session, name, arguments, confirmed=True, key=key, approved=approved
        )
    else:
        outcome = await backend.decline(session, name, arguments)
        if agreed:
            told = {"error": "not_approved", "help": "a person said no; tell the customer"}
            outcome = dataclasses.replace(outcome, result=told, rule=rule)
    return {
        "messages": [_answer(proposal["id"], outcome)],
        "tool_calls": [_attempt(proposal["id"], name, arguments, outcome)],
        "session": outcome.session,
        "proposal": None,
    }


def _answer_to(question: dict[str, Any]) -> bool:
    answer = interrupt(question, response_schema=Confirmation)
    return Confirmation.model_validate(answer).confirmed


async def handoff(state: ServiceState) -> ServiceState:
    """Close the agent's part with a packet for the person who takes over. Whatever the customer writes
    afterwards is answered with that."""
    packet = state.get("handed_off") or {
        "customer": state["session"]["customer"],
        "attempts": [
            {"tool": call["name"], "status": call["status"]} for call in state["tool_calls"]
        ],
        "reason": state["tool_calls"][-1]["arguments"].get("reason", ""),
    }
    return {
        "handed_off": packet,
        "messages": [AIMessage("I am passing you to a colleague who will take over.")],
    }


def after_identity(state: ServiceState) -> str:
    return "handoff" if state.get("handed_off") else "policy"


def after_policy(state: ServiceState) -> str:
    last = state["messages"][-1]
    return "tools" if isinstance(last, AIMessage) and last.tool_calls else "__end__"


def after_tools(state: ServiceState) -> str:
    if state.get("proposal"):
        return "confirm"
    return "handoff" if _hands_off(state["tool_calls"][-1]) else "policy"


def after_confirm(state: ServiceState) -> str:
    """Calls of the same message that came after the confirmed one still have to run."""
    last = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
    answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
    return "policy" if all(call["id"] in answered for call in last.tool_calls) else "tools"


def _hands_off(attempt: dict[str, Any]) -> bool:
    return bool(attempt["name"] == "escalate_to_human" and attempt["status"] == "done")


def _answer(call_id: str, outcome: Outcome) -> ToolMessage:
    return ToolMessage(json.dumps(outcome.result), tool_call_id=call_id)


def _attempt(
    call_id: str, name: str, arguments: dict[str, Any], outcome: Outcome
) -> dict[str, Any]:
    return {
        "id": call_id,
        "name": name,
        "arguments": arguments,
        "status": outcome.status,
        "result": outcome.result,
        "rule": outcome.rule,
        "facts": {thing: dict(known) for thing, known in outcome.facts.items()},
    }
