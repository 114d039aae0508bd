"""Rules and discipline: attempts that the executor stopped, by the rule's id. They only subtract."""

from stateset_agents.reward import Declaration, EachTrace, Score
from stateset_agents.trace import Trace


class RulesReward(EachTrace):
    """-1 for an episode in which an attempt had to be stopped, 0 for a clean one; the parts name each rule."""

    name = "rules"
    declaration = Declaration(low=-1.0, high=0.0, reads=("tool_calls",))

    def score(self, trace: Trace) -> Score | None:
        broken = trace.violations
        parts = {rule: -float(broken.count(rule)) for rule in sorted(set(broken))}
        return Score(value=-1.0 if broken else 0.0, parts=parts, reason=", ".join(parts))


PROCESS = (
    "verify-first",
    "confirm-writes",
    "ids-as-seen",
    "refund-as-quoted",
    "order-as-quoted",
    "own-records-only",
)
"""Rules of the shop about the order of work: verify, look up, get the customer's consent."""


class DisciplineReward(EachTrace):
    """Minus the share of attempts in the wrong order: before verification, a look-up, a quote or consent."""

    name = "discipline"
    declaration = Declaration(low=-1.0, high=0.0, reads=("tool_calls",))

    def __init__(self, process: tuple[str, ...] = PROCESS) -> None:
        self.process = process

    def score(self, trace: Trace) -> Score | None:
        early = [call.rule for call in trace.tool_calls if call.rule in self.process]
        if not early:
            return Score(value=0.0)
        rules = ", ".join(sorted({str(rule) for rule in early}))
        return Score(value=-len(early) / len(trace.tool_calls), reason=f"too early: {rules}")
