"""A limit's multiplier rises until the limit holds, and falls where it holds by itself."""

import random

from stateset_agents.trace import ToolCall, Trace
from stateset_agents.trainers.constraints import COSTS, Limit, Multipliers

BROKE = ToolCall(id="1", name="t", arguments={}, status="denied", result={}, rule="verify-first")


def traces(broken: int, clean: int) -> list[Trace]:
    return [Trace(tool_calls=(BROKE,))] * broken + [Trace()] * clean


def test_a_multiplier_follows_the_share_above_its_limit() -> None:
    limit = Limit(name="violations", share=0.1, cost=COSTS["violations"])
    multipliers = Multipliers([limit], rate=2.0)
    assert multipliers.price(Trace(tool_calls=(BROKE,))) == 0.0
    assert multipliers.update(traces(3, 7)) == {"violations": 0.3}
    assert round(multipliers.values["violations"], 6) == 0.4
    assert round(multipliers.price(Trace(tool_calls=(BROKE,))), 6) == 0.4
    assert multipliers.price(Trace()) == 0.0
    multipliers.update(traces(0, 10))
    assert round(multipliers.values["violations"], 6) == 0.2
    multipliers.update(traces(0, 40))
    multipliers.update(traces(0, 40))
    assert multipliers.values["violations"] == 0.0


def test_it_holds_where_a_weight_that_was_guessed_does_not() -> None:
    """A policy that gains 1.0 by breaking a rule, and moves with what pays: a fixed weight of 0.3 never stops it."""

    def broken_after(rate: float, fixed: float) -> float:
        rng, chance = random.Random(0), 0.9
        multipliers = Multipliers(
            [Limit(name="v", share=0.05, cost=COSTS["violations"])], rate=rate
        )
        late = []
        for step in range(300):
            broke = sum(rng.random() < chance for _ in range(64))
            multipliers.update(traces(broke, 64 - broke))
            gain = 1.0 - fixed - multipliers.values["v"]
            chance = min(0.99, max(0.001, chance + 0.02 * gain * chance * (1 - chance) * 10))
            if step >= 200:
                late.append(broke / 64)
        return sum(late) / len(late)

    assert broken_after(rate=0.5, fixed=0.0) < 0.08
    assert broken_after(rate=1e-9, fixed=0.3) > 0.9


def test_what_a_trace_does_not_tell_is_in_no_share() -> None:
    multipliers = Multipliers([Limit(name="x", share=0.1, cost=lambda trace: None)], rate=1.0)
    assert multipliers.update(traces(1, 1)) == {}
    assert multipliers.values == {"x": 0.0}
