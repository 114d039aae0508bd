"""Disclosure: did the customer get the required facts, with the tools' amounts and dates?"""

from stateset_agents.grounding import specifics
from stateset_agents.reward import Declaration, EachTrace, Score
from stateset_agents.rewards.evidence import from_customer, from_tools
from stateset_agents.trace import Trace


class DisclosureReward(EachTrace):
    """The share of the goal's facts that were stated; 0 if an amount, date or id was invented. None if no fact is required."""

    name = "disclosure"
    declaration = Declaration(low=0.0, high=1.0, reads=("scenario", "messages", "tool_calls"))

    def score(self, trace: Trace) -> Score | None:
        goal = trace.scenario.goal if trace.scenario else None
        if goal is None or not goal.facts:
            return None
        text = trace.agent_text
        wrong = specifics(text) - from_tools(trace) - from_customer(trace)
        if wrong:
            return Score(value=0.0, reason=f"nobody gave {', '.join(sorted(wrong)[:3])}")
        missing = [fact.name for fact in goal.facts if not fact.said_in(text)]
        share = 1 - len(missing) / len(goal.facts)
        return Score(value=share, reason=f"not said: {', '.join(missing)}" if missing else "")
