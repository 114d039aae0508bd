"""Feedback as a reward: thumbs, CSAT, resolved or not, or any number of your own."""

from stateset_agents.errors import BadInput
from stateset_agents.reward import Declaration, EachTrace, Score, checked_weight
from stateset_agents.trace import Trace


class FeedbackReward(EachTrace):
    """The mean of a trace's feedback of one kind, from `low` to `high` as 0 to 1; None without feedback."""

    name = "feedback"
    declaration = Declaration(low=0.0, high=1.0, reads=("feedback",))

    def __init__(
        self, key: str, *, low: float = 0.0, high: float = 1.0, weight: float = 1.0
    ) -> None:
        if not low < high:
            raise BadInput(f"feedback: expected low < high, found {low} and {high}.")
        self.key, self.low, self.high = key, low, high
        self.weight = checked_weight(weight, self.name)

    def score(self, trace: Trace) -> Score | None:
        values = [item.value for item in trace.feedback if item.key == self.key]
        if not values:
            return None
        mean = sum(values) / len(values)
        value = min(1.0, max(0.0, (mean - self.low) / (self.high - self.low)))
        return Score(value=value, reason=f"{self.key} {mean:g} of {len(values)}")
