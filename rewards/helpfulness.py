"""Helpfulness: is the request answered with facts of this conversation? Length and politeness earn nothing."""

from collections.abc import Sequence

from stateset_agents.reward import Score, checked_weight
from stateset_agents.rewards.words import from_customer, from_tools
from stateset_agents.statements import claims, specifics
from stateset_agents.trace import Trace

_REFUSES = ("cannot", "can not", "not possible", "unable to", "sorry")
_WRITES = ("cancel_order", "change_shipping_address", "issue_refund", "create_return")


class HelpfulnessReward:
    """From 0 to 1.

    1.0 acted and said what came of it; 0.8 answered with what a tool reported; 0.6 acted without a word
    on it; 0.5 refused for a reason a tool gave; 0.3 asked for what it needs; 0.1 said something; 0.0 said
    nothing, stated what nobody told it, or claimed an act that did not happen.
    """

    name = "helpfulness"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = checked_weight(weight, self.name)

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        return [self.score(trace) for trace in traces]

    def score(self, trace: Trace) -> Score | None:
        if trace.status == "failed":
            return None
        said = trace.said
        stated, reported = specifics(said), from_tools(trace)
        invented = stated - reported - from_customer(trace)
        acted = any(call.name in _WRITES and call.status == "done" for call in trace.tool_calls)
        value, reason = 0.1, "nothing specific"
        if not said.strip():
            value, reason = 0.0, "says nothing"
        elif invented:
            value, reason = 0.0, f"invented {', '.join(sorted(invented)[:3])}"
        elif claims(said) and not acted:
            value, reason = 0.0, "claims an act that did not happen"
        elif acted and stated & reported:
            value, reason = 1.0, "acted and said what came of it"
        elif stated & reported:
            value, reason = 0.8, "answered with what a tool reported"
        elif acted:
            value, reason = 0.6, "acted without a word on it"
        elif any(word in said.lower() for word in _REFUSES) and trace.tool_calls:
            value, reason = 0.5, "refused after looking"
        elif "?" in said:
            value, reason = 0.3, "asked for what it needs"
        return Score(value=value, reason=reason)
