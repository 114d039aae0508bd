"""Effort: what an episode cost in model calls, as a number from -1 to 0."""

from collections.abc import Sequence

from stateset_agents.reward import Score
from stateset_agents.trace import Trace


class EffortReward:
    """`-calls / budget`, at least -1."""

    name = "effort"

    def __init__(self, budget: int = 20) -> None:
        if budget < 1:
            raise ValueError(f"Expected a budget of at least one call, found {budget}.")
        self.budget = budget

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        return [self.score(trace) for trace in traces]

    def score(self, trace: Trace) -> Score | None:
        if trace.status == "failed":
            return None
        calls = len(trace.model_calls)
        return Score(value=-min(1.0, calls / self.budget), parts={"calls": float(calls)})
