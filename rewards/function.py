"""A plain function of a trace as a reward."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Score, scorable
from stateset_agents.trace import Trace


class FunctionReward:
    """The function returns a number, a Score, or None where it cannot score a trace."""

    def __init__(self, function: Callable[[Trace], Any], name: str) -> None:
        self.function = function
        self.name = name

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        """Raises RunBroken where the function returns a number that is not finite."""
        scores: list[Score | None] = []
        for trace in traces:
            value = self.function(trace) if scorable(trace) else None
            if isinstance(value, int | float):
                if not math.isfinite(value):
                    raise RunBroken(
                        f"Expected a finite number, a Score or None of the reward {self.name!r}, "
                        f"found {value} for trace {trace.id!r}."
                    )
                value = Score(value=value)
            scores.append(value)
        return scores
