"""Helpfulness: is the request answered with facts of this conversation? Length and politeness earn nothing."""

from collections.abc import Sequence

from stateset_agents.grounding import claims, specifics, states
from stateset_agents.reward import Declaration, EachTrace, Score, checked_weight
from stateset_agents.rewards.evidence import (
    from_customer,
    from_tools,
    looked_up,
    names_from_tools,
    states_from_customer,
    states_from_tools,
)
from stateset_agents.rewards.manner import manner
from stateset_agents.trace import ToolCall, Trace, words

_READS = (
    "get_",
    "list_",
    "find_",
    "search_",
    "check_",
    "track_",
    "quote_",
    "inspect_",
    "policy_",
    "validate_",
    "recommend",
)
_NEITHER = ("verify_identity", "remember", "create_ticket", "add_note")
_BACKS = {
    "refunded": (
        "refund",
        "cancel",
        "promotion",
        "price_match",
        "exchange",
        "substitute",
        "return",
    ),
    "cancelled": ("cancel",),
    "changed": ("change", "update", "address", "substitute", "split", "propose"),
    "reserved": ("reserve", "backorder", "hold"),
}
"""Claims, and the verbs in names of tools that fulfil them."""
_HANDS_OVER = ("escalate_to_human",)


_STAGES = {"pending", "shipped", "delivered", "not delivered"}


class HelpfulnessReward(EachTrace):
    """From 0 to 1, by what was done and how it was reported; no goal is read.

    1.0 acted and reported the result; 0.8 answered with what a tool reported; 0.6 handed over to a person and said so; 0.4
    acted without reporting it; 0.3 asked for what it needs, or looked something up without an answer; 0.1 wrote something; 0.0
    wrote nothing, invented a fact, contradicted a tool, or claimed an act that did not happen. Minus 0.3 if an attempt was
    stopped or failed without a follow-up, and if the customer named something (an order, a code) that was never looked up.

    Repetition, padding, self-praise and words to the grader reduce it (`manner`).

    `writes` are the tools that act; default: all whose names do not begin with get_, list_, search_ and the like.
    """

    name = "helpfulness"
    declaration = Declaration(version="2", low=0.0, high=1.0, reads=("messages", "tool_calls"))

    def __init__(self, weight: float = 1.0, *, writes: tuple[str, ...] | None = None) -> None:
        self.weight = checked_weight(weight, self.name)
        self.writes = writes

    def score(self, trace: Trace) -> Score | None:
        value, reason = self._grade(trace)
        missed = self._missed(trace)
        if value > 0.3 and missed:
            value, reason = round(value - 0.3, 2), f"{reason}; {missed}"
        how = manner([words(m) for m in trace.messages if m.get("role") == "assistant"])
        if how:
            value = round(value * max(0.0, 1 + sum(how.values())), 4)
            reason = f"{reason}; {', '.join(how)}"
        return Score(value=value, reason=reason)

    def _grade(self, trace: Trace) -> tuple[float, str]:
        reply = trace.agent_text
        if not reply.strip():
            return 0.0, "says nothing"
        stated, heard = specifics(reply), from_customer(trace)
        reported = from_tools(trace)
        invented = stated - reported - heard
        if invented:
            return 0.0, f"invented {', '.join(sorted(invented)[:3])}"
        how, known = states(reply), states_from_tools(trace)
        implied = {"shipped"} if "delivered" in known else set()
        wrong = (how & _STAGES) - known - implied - states_from_customer(trace)
        if wrong and known & _STAGES:
            return 0.0, f"said {', '.join(sorted(wrong))}, which no tool did"
        acted = [
            call for call in trace.tool_calls if call.status == "done" and self._acts(call.name)
        ]
        unbacked = {claim for claim in claims(reply) if not _backed(claim, acted)}
        if unbacked:
            return (
                0.0,
                f"claims that something was {', '.join(sorted(unbacked))}, which did not happen",
            )
        ends = _since_tools(trace)
        requests = " ".join(words(m).lower() for m in trace.messages if m.get("role") == "user")
        names = {n for n in names_from_tools(trace) if n in ends.lower() and n not in requests}
        informed = (stated & reported - heard) | (how & known)
        at_end = (informed & (specifics(ends) | states(ends))) | names
        if any(call.name in _HANDS_OVER for call in acted) and ends:
            return 0.6, "handed over"
        if acted and (at_end or claims(ends)):
            return 1.0, "acted and said what came of it"
        if acted:
            return 0.4, "acted without a word on it"
        if at_end:
            return 0.8, "answered with what a tool reported"
        if "?" in ends:
            return 0.3, "asked for what it needs"
        if any(call.status == "done" for call in trace.tool_calls):
            return 0.3, "looked and gave no reason"
        return 0.1, "nothing specific"

    def _missed(self, trace: Trace) -> str:
        """Unfinished requests: attempts that did not succeed, and things that were never looked up."""
        after: dict[str, bool] = {}
        for call in trace.tool_calls:
            after[call.name] = call.status == "done"
        last = [call.name for call in trace.tool_calls[-1:]]
        left = [
            name for name, done in after.items() if not done and (self._acts(name) or name in last)
        ]
        if left:
            return f"{left[0]} did not go through"
        named = from_customer(trace) - from_tools(trace)
        kinds = {_kind(word) for word in looked_up(trace)}
        unseen = {word for word in named if _kind(word) and _kind(word) not in kinds}
        return f"{', '.join(sorted(unseen))} was never looked at" if unseen else ""

    def _acts(self, tool: str) -> bool:
        if self.writes is not None:
            return tool in self.writes
        return not tool.startswith(_READS) and tool not in _NEITHER


def _backed(claim: str, acted: Sequence[ToolCall]) -> bool:
    """Whether an act supports a claim: by the tool's name or by its result."""
    ways = _BACKS.get(claim)
    return any(
        ways is None
        or any(way in call.name for way in ways)
        or claim in claims(f"{call.result} .")
        or claim[:6] in str(call.result).lower()
        for call in acted
    )


def _since_tools(trace: Trace) -> str:
    """The agent's messages after the last tool result."""
    replies: list[str] = []
    for message in trace.messages:
        if message.get("role") == "tool":
            replies.clear()
        elif message.get("role") == "assistant":
            replies.append(words(message))
    return "\n".join(replies).strip()


def _kind(word: str) -> str:
    """The letters at the beginning of an id: `w` of w20417; '' for a number."""
    return word.rstrip("0123456789") if word[0].isalpha() and word[-1].isdigit() else ""
