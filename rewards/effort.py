"""The cost of an episode: calls, turns, tools, tokens, and the customer's time. These rewards only subtract."""

from stateset_agents.reward import Declaration, EachTrace, Score
from stateset_agents.trace import Trace


class EffortReward(EachTrace):
    """Minus the mean share of each budget that was used, at least -1. A budget is for model calls, and on request for
    the customer's turns, tool calls and sampled tokens."""

    name = "effort"
    declaration = Declaration(low=-1.0, high=0.0, reads=("model_calls", "messages", "tool_calls"))

    def __init__(
        self, budget: int = 20, *, turns: int | None = None, tools: int | None = None, tokens: int | None = None
    ) -> None:  # fmt: skip
        given = {"calls": budget, "turns": turns, "tools": tools, "tokens": tokens}
        self.budgets = {name: most for name, most in given.items() if most is not None}
        for name, most in self.budgets.items():
            if most < 1:
                raise ValueError(f"Expected a budget of at least one for {name}, found {most}.")

    def score(self, trace: Trace) -> Score | None:
        used = {
            "calls": len(trace.model_calls),
            "turns": trace.turns,
            "tools": len(trace.tool_calls),
            "tokens": trace.tokens_in_all,
        }
        shares = [min(1.0, used[name] / most) for name, most in self.budgets.items()]
        parts = {name: float(used[name]) for name in self.budgets}
        return Score(value=-sum(shares) / len(shares), parts=parts)


class LatencyReward(EachTrace):
    """Minus the share of model calls that took longer than `sla` seconds. None if nothing was measured."""

    name = "latency"
    declaration = Declaration(low=-1.0, high=0.0, reads=("model_calls",))

    def __init__(self, sla: float = 2.0) -> None:
        if not sla > 0:
            raise ValueError(f"Expected an SLA of more than 0 seconds, found {sla}.")
        self.sla = sla

    def score(self, trace: Trace) -> Score | None:
        taken = [call.seconds for call in trace.calls if call.seconds > 0]
        if not taken:
            return None
        late = sum(seconds > self.sla for seconds in taken)
        return Score(value=-late / len(taken), parts={"slowest": max(taken)})
