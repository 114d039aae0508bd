"""Rules: -1 for an episode in which the executor had to stop an attempt, 0 for a clean one."""

from collections.abc import Sequence

from stateset_agents.reward import Score
from stateset_agents.trace import Trace


class RulesReward:
    name = "rules"

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        return [self.score(trace) for trace in traces]

    def score(self, trace: Trace) -> Score | None:
        if trace.status == "failed":
            return None
        broken = trace.violations
        parts = {rule: -float(broken.count(rule)) for rule in sorted(set(broken))}
        return Score(value=-1.0 if broken else 0.0, parts=parts, reason=", ".join(parts))
