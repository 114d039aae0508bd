"""Objectives are normalised one by one, so that what is reached in one way is not mistaken for what is reached in another."""

from collections.abc import Sequence

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.jobs.registry import find_reward
from stateset_agents.reward import Declaration, Score
from stateset_agents.rewards.composite import CompositeReward
from stateset_agents.trace import Trace
from stateset_agents.trainers.algorithms.algorithm import normalised


class Column:
    """A reward whose scores are given."""

    def __init__(self, name: str, values: Sequence[float | None]) -> None:
        self.name, self.values, self.declaration = name, values, Declaration()

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        return [None if v is None else Score(value=v) for v in self.values]


async def values(
    how: str, *columns: Sequence[float | None], weights: Sequence[float] = (1.0, 1.0)
) -> list[float | None]:
    given = {Column(str(n), c): w for n, (c, w) in enumerate(zip(columns, weights, strict=True))}
    scores = await CompositeReward(given, how=how)([Trace()] * len(columns[0]))  # type: ignore[arg-type]
    return [None if score is None else score.value for score in scores]


async def test_one_and_zero_is_not_zero_and_one() -> None:
    """The first objective is seldom reached and the second often: (1, 0) is worth more than (0, 1). Summed, both are 1."""
    seldom, often = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]
    summed = await values("sum", seldom, often)
    assert normalised(summed)[0] == normalised(summed)[1]
    apart = await values("gdpo", seldom, often)
    assert apart[0] is not None
    assert apart[1] is not None
    assert apart[0] > apart[1] + 0.25


async def test_a_small_scale_is_not_drowned_by_a_large_one() -> None:
    quality, cents = [0.0, 1.0, 0.0, 1.0], [900.0, 800.0, 850.0, 840.0]
    summed = await values("sum", quality, cents)
    assert max(range(4), key=lambda n: summed[n] or 0.0) == 0  # cents alone decide
    apart = await values("gdpo", quality, cents)
    assert max(range(4), key=lambda n: apart[n] or 0.0) == 3


async def test_it_is_exact_where_float32_would_not_be() -> None:
    """Cents of a large shop: in float16 the two are one number, and in float32 a mean of many is off."""
    scores = await values("gdpo", [10_000_001.0, 10_000_000.0], [0.0, 0.0])
    assert scores == [1.0, -1.0]


async def test_what_could_not_be_scored_is_left_out_of_the_mean() -> None:
    scores = await values("gdpo", [1.0, None, 0.0], [0.0, 0.0, 0.0])
    assert scores == [1.0, None, -1.0]


async def test_weights_are_of_what_is_normalised() -> None:
    scores = await values("gdpo", [1.0, 0.0], [0.0, 10.0], weights=(2.0, 1.0))
    assert scores == pytest.approx([1.0, -1.0])


def test_it_has_a_name_on_the_command_line() -> None:
    reward = find_reward("gdpo:outcome=1,rules=0.3")
    assert isinstance(reward, CompositeReward)
    assert reward.declaration.compares
    with pytest.raises(BadInput, match="gdpo:NAME=WEIGHT"):
        find_reward("gdpo:nothing=1")
