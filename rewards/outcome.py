"""Outcome: did the shop change as the scenario requires, and did the customer get the required facts?"""

from stateset_agents.reward import Declaration, EachTrace, Score
from stateset_agents.rewards.evidence import guesses
from stateset_agents.trace import Trace

PARTIAL = 0.4
"""The most that an episode without success can earn: this times F1 of the change times the share of the facts."""


class OutcomeReward(EachTrace):
    """1 for success, up to `PARTIAL` for a part of it. None without a goal, and for a run that waits for somebody.

    A truncated run is the policy's fault, so it is scored, and is not a success.
    """

    name = "outcome"
    declaration = Declaration(
        low=0.0, high=1.0, reads=("scenario", "changes", "tool_calls", "messages")
    )

    def score(self, trace: Trace) -> Score | None:
        goal = trace.goal_score
        if goal is None or trace.status == "waiting":
            return None
        parts = {"change_f1": goal.change_f1, "facts_said": goal.facts_said}
        if guesses(trace):
            return Score(value=0.0, parts=parts, reason="says everything at once")
        if goal.success:
            return Score(value=1.0, parts=parts, reason="success")
        value = 0.0 if goal.forbidden else PARTIAL * goal.change_f1 * goal.facts_said
        return Score(value=value, parts=parts, reason=", ".join(goal.forbidden) or "goal not met")
