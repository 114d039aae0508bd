"""A plain function of a trace as a reward."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Score, scorable
from stateset_agents.trace import Trace

log = logging.getLogger(__name__)


class FunctionReward:
    """The function returns a number (Python's, NumPy's or torch's), a Score, or None where it cannot score a trace.

    Where it raises, the trace has no score and the log has the traceback; where it raises for every trace of a group, the run
    ends, since nothing could be learned.
    """

    def __init__(self, function: Callable[[Trace], Any], name: str) -> None:
        self.function = function
        self.name = name

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        """Raises RunBroken where the function returns something else than a finite number, or fails for all traces."""
        scores: list[Score | None] = []
        errors: list[Exception] = []
        for trace in traces:
            if not scorable(trace):
                scores.append(None)
                continue
            try:
                value = self.function(trace)
            except Exception as error:
                log.exception("the reward %s failed for trace %s", self.name, trace.id)
                errors.append(error)
                value = None
            scores.append(self._score(value, trace))
        if errors and len(errors) == sum(map(scorable, traces)):
            raise RunBroken(
                f"Expected a score from the reward {self.name!r}, found that it failed for all {len(errors)} traces, the last with "
                f"{type(errors[-1]).__name__}: {errors[-1]}"
            )
        return scores

    def _score(self, value: Any, trace: Trace) -> Score | None:
        if value is None or isinstance(value, Score):
            return value
        if callable(getattr(value, "item", None)) and getattr(value, "size", 1) != 0:
            with contextlib.suppress(ValueError, RuntimeError, TypeError):
                value = value.item()  # a number of NumPy's or torch's
        if isinstance(value, Decimal):
            value = float(value)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RunBroken(
                f"Expected a finite number, a Score or None of the reward {self.name!r}, found {value!r:.100} "
                f"({type(value).__name__}) for trace {trace.id!r}."
            )
        return Score(value=float(value))
