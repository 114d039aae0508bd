"""The nodes of an agent: identity, policy, tools, confirmation, hand-off.

All are async, even those that do not wait: LangGraph runs a plain function in a thread, where two conversations could use one
database connection at once.
"""

import asyncio
import dataclasses
import json
import uuid
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt

from stateset_agents.errors import BadInput
from stateset_agents.grounding import unsupported
from stateset_agents.nodes.edges import HAND_OFF, hands_off
from stateset_agents.nodes.state import (
    AgentContext,
    Agents,
    AgentState,
    Bound,
    Confirmation,
    agents_of,
)
from stateset_agents.plain import plain
from stateset_agents.tools.executor import Outcome
from stateset_agents.tools.tool import Session

TRANSFER = "transfer"
"""The tool with which an agent passes a conversation to another agent; it is not a tool of the shop."""
GUARD = "guard-"
"""The ids of calls that the guard makes begin so."""
BROKEN_CALL = "a tool call that cannot be read"
_MARKUP = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<function=",
    "<|tool_call",
    "<tool_code>",
)
"""How tool calls begin that an engine should have read."""
HOLDS = 2
"""Replies that are held back in one turn before a person takes over."""


class Agent:
    """The nodes of one agent. `domain` names it in the context of a graph with several agents."""

    def __init__(self, domain: str, bound: Bound | None = None) -> None:
        self.domain = domain
        self.bound = bound

    def context(self, runtime: Runtime[Agents]) -> AgentContext:
        """The agent's context in this run. Raises BadInput if the run has none."""
        return agents_of(runtime, self.bound).team[self.domain]

    async def identity(self, state: AgentState, runtime: Runtime[Agents]) -> AgentState:
        """Start a session; a customer who is signed in to the host app counts as verified."""
        if not state.get("messages"):
            raise BadInput(
                "Expected a conversation, found none on this thread: nothing here waits to be resumed."
            )
        if "session" in state:
            return {}
        return {"session": Session(customer=self.context(runtime).customer)}

    async def policy(self, state: AgentState, runtime: Runtime[Agents]) -> AgentState:
        """Ask the policy what to do next. With the guard, a reply with unsupported statements is held back and sampled again;
        after several such replies a person takes over: once by the tool for it, if there is one, else by the graph's end."""
        context, note, wrong = self.context(runtime), "", list[str]()
        # What may be held back must not be streamed to the customer while it is being written.
        options: RunnableConfig = {"tags": [TAG_NOSTREAM]} if context.guard else {}
        prompt = context.prompt
        if context.memory is not None:
            prompt += await context.memory.prompt(state["session"]["customer"])
        for _ in range(1 + HOLDS):
            prompt_messages = [SystemMessage(prompt + note), *state["messages"]]
            answer = await context.policy.ainvoke(prompt_messages, options)
            wrong = await _checked(answer, state, context) if context.guard else []
            if context.guard and _is_broken_call(answer):
                wrong = [BROKEN_CALL]
            if not wrong:
                return {"messages": [answer]}
            reason = f"no tool told you {', '.join(wrong)}"
            if wrong == [BROKEN_CALL]:
                reason = "it was a tool call that cannot be read"
            note = (
                f" Your last reply was held back: {reason}. "
                "Say only what a tool told you, or use a tool."
            )
        reason = f"the agent would not answer without {', '.join(wrong)}"
        if HAND_OFF not in context.backend.offers or _guard_called(state):
            return {"handed_off": {**packet(state), "reason": reason}}
        call = {"name": HAND_OFF, "args": {"reason": reason}, "id": f"{GUARD}{uuid.uuid4().hex}"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    async def tools(self, state: AgentState, runtime: Runtime[Agents]) -> AgentState | Command[str]:
        """Run the calls of the last message in order, up to the first write that needs confirmation, or to a transfer to
        another agent."""
        context = self.context(runtime)
        session, backend = _session(state, context), context.backend
        conversation = state["messages"]
        answered = {
            message.tool_call_id for message in conversation if isinstance(message, ToolMessage)
        }
        last = next(message for message in reversed(conversation) if isinstance(message, AIMessage))
        messages: list[AnyMessage] = []
        attempts: list[dict[str, Any]] = []
        proposal = None
        for call in last.tool_calls:
            if call["id"] in answered:
                continue
            to = call["args"].get("agent")
            if call["name"] == TRANSFER and to in context.colleagues:
                moved = ToolMessage(json.dumps({"passed_to": to}), tool_call_id=call["id"])
                # The graph above has seen nothing of this turn yet: it is given all of it.
                update = {
                    "messages": [*conversation, *messages, moved], "session": _kept(session), "active": to,
                    "tool_calls": [*state.get("tool_calls", []), *attempts],
                }  # fmt: skip
                return Command(graph=Command.PARENT, goto=to, update=update)
            session["call"] = str(call["id"])
            outcome = await backend.propose(session, call["name"], call["args"])
            if outcome.status == "proposed":
                proposal = {"id": call["id"], "tool": call["name"], "arguments": call["args"]}
                if outcome.summary:
                    proposal["summary"] = outcome.summary
                if outcome.rule is not None:
                    proposal["approval"] = outcome.rule
                break
            session = outcome.session.copy()
            messages.append(_answer(call["id"] or "", outcome))
            attempts.append(_attempt(call["id"] or "", call["name"], call["args"], outcome))
            if hands_off(attempts[-1]):
                break  # whatever else was asked for is a person's business now
        return {
            "messages": messages,
            "tool_calls": attempts,
            "session": _kept(session),
            "proposal": proposal,
        }

    async def confirm(self, state: AgentState, runtime: Runtime[Agents]) -> AgentState:
        """Wait for the customer's confirmation of a proposed write, and for a person's approval if a rule requires it; then
        make exactly that write, or cancel it."""
        proposal = state.get("proposal")
        assert proposal is not None
        write: dict[str, Any] = {
            name: proposal[name]
            for name in ("id", "tool", "arguments", "summary")
            if name in proposal
        }
        agreed = _answer_to({"type": "confirmation", **write})
        rule = proposal.get("approval")
        approved = (
            agreed and rule is not None and _answer_to({"type": "approval", "rule": rule, **write})
        )
        context = self.context(runtime)
        backend, session = context.backend, _session(state, context)
        session["call"] = proposal["id"]
        name, arguments = proposal["tool"], proposal["arguments"]
        key = f"{context.thread}/{proposal['id']}"
        # A turn may have broken off after the write: then a no cannot undo it, and must not deny it.
        made = None if agreed else await backend.made(session, name, arguments, key=key)
        if made is not None:
            outcome = made
        elif agreed and (approved or rule is None):
            outcome = await backend.commit(
                session, name, arguments, confirmed=True, key=key, approved=approved
            )
        else:
            outcome = await backend.decline(session, name, arguments)
            if agreed:
                result = {"error": "not_approved", "help": "a person said no; tell the customer"}
                outcome = dataclasses.replace(outcome, result=result, rule=rule)
        return {
            "messages": [_answer(proposal["id"], outcome)],
            "tool_calls": [_attempt(proposal["id"], name, arguments, outcome)],
            "session": _kept(outcome.session),
            "proposal": None,
        }

    async def broken(self, state: AgentState, error: NodeError) -> Command[str]:
        """If the shop does not answer, the pending calls are answered with an error and a person takes over. Other errors are
        raised to the caller."""
        if not transient(error.error):
            raise error.error
        last = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
        answer = json.dumps({"error": "unavailable", "help": "a colleague takes over"})
        waiting = [call["id"] for call in last.tool_calls if call["id"] not in answered]
        reason = f"the shop does not answer: {type(error.error).__name__}: {error.error}"
        return Command(
            goto="handoff",
            update={
                "messages": [ToolMessage(answer, tool_call_id=call or "") for call in waiting],
                "handed_off": {**packet(state), "reason": reason[:300]},
                "proposal": None,
            },
        )

    async def handoff(self, state: AgentState) -> AgentState:
        """End the agent's part with a packet for the person who takes over. Later messages of the customer get the same
        answer."""
        return {
            "handed_off": state.get("handed_off") or packet(state),
            "messages": [AIMessage("I am passing you to a colleague who will take over.")],
        }


def transient(error: BaseException) -> bool:
    """Errors of a network or of a restarting database, which a retry can fix."""
    names = ("OperationalError", "PoolTimeout", "NodeTimeoutError")
    return isinstance(error, OSError) or type(error).__name__ in names


def packet(state: AgentState) -> dict[str, Any]:
    """What a person needs to take over: the customer, their requests, what is known, done and pending, and the reason."""
    calls = state.get("tool_calls", [])
    done = [call for call in calls if call["status"] == "done"]
    return {
        "customer": state["session"]["customer"],
        "requests": [m.text for m in state["messages"] if isinstance(m, HumanMessage)],
        "facts": [{"tool": call["name"], "result": call["result"]} for call in done],
        "attempts": [{"tool": call["name"], "status": call["status"]} for call in calls],
        "pending": state.get("proposal"),
        "reason": calls[-1]["arguments"].get("reason", "") if calls else "",
    }


def _is_broken_call(answer: AIMessage) -> bool:
    """Whether the model meant to call a tool and wrote something else: no customer should read that."""
    if answer.tool_calls:
        return False
    return bool(answer.invalid_tool_calls) or any(mark in answer.text for mark in _MARKUP)


def _guard_called(state: AgentState) -> bool:
    """Whether the guard asked for a person since the customer's last message, and the policy was asked again."""
    for message in reversed(state["messages"]):
        if isinstance(message, HumanMessage):
            return False
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        if calls and str(calls[0]["id"]).startswith(GUARD):
            return True
    return False


def _session(state: AgentState, context: AgentContext) -> Session:
    """The conversation's session, in the agent's role."""
    session = state["session"].copy()
    session["role"] = context.role
    return session


def _kept(session: Session) -> Session:
    """The session for the next node: the call it was made for is over."""
    kept = session.copy()
    kept.pop("call", None)
    return kept


LONG = 20_000
"""Characters of a conversation that is looked through in a thread: others are answered meanwhile."""


async def _checked(answer: AIMessage, state: AgentState, context: AgentContext) -> list[str]:
    if sum(len(m.text) for m in state["messages"]) < LONG:
        return _unsupported(answer, state, context)
    return await asyncio.to_thread(_unsupported, answer, state, context)


def _unsupported(answer: AIMessage, state: AgentState, context: AgentContext) -> list[str]:
    attempts = [call for call in state.get("tool_calls", []) if call["status"] == "done"]
    offers = context.backend.offers
    return unsupported(
        answer.text,
        customer=[m.text for m in state["messages"] if isinstance(m, HumanMessage)],
        tools=[m.text for m in state["messages"] if isinstance(m, ToolMessage)],
        prompt=context.prompt,
        acted=any(
            call["name"] in offers and offers[call["name"]].asks(call["arguments"])
            for call in attempts
        ),
    )


def _answer_to(question: dict[str, Any]) -> bool:
    answer = interrupt(question, response_schema=Confirmation)
    return Confirmation.model_validate(answer).confirmed


def _answer(call_id: str, outcome: Outcome) -> ToolMessage:
    """The outcome for the model. It never fails: the act is done."""
    text = outcome.text
    if text is None:
        text = json.dumps(plain(outcome.result))
    return ToolMessage(text, tool_call_id=call_id)


def _attempt(
    call_id: str, name: str, arguments: dict[str, Any], outcome: Outcome
) -> dict[str, Any]:
    return {
        "id": call_id,
        "name": name,
        "arguments": plain(arguments),
        "status": outcome.status,
        "result": plain(outcome.result),
        "rule": outcome.rule,
        "facts": {thing: plain(dict(known)) for thing, known in outcome.facts.items()},
    }
