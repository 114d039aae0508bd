"""Rewards of somebody else's: what they return and how they fail."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Score
from stateset_agents.rewards.function import FunctionReward
from stateset_agents.trace import Trace

TALK = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
TRACES = [Trace(id=f"{n:032x}", messages=TALK) for n in range(3)]


@pytest.mark.parametrize(
    "value",
    [0.5, Decimal("0.5"), np.float32(0.5), np.array(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([0.5]), Score(value=0.5)],
)  # fmt: skip
async def test_any_kind_of_number_is_a_score(value: Any) -> None:
    scores = await FunctionReward(lambda trace: value, "mine")(TRACES)
    assert [score.value for score in scores if score] == [0.5] * 3
    assert (await FunctionReward(lambda trace: np.int64(2), "mine")(TRACES))[0] == Score(value=2.0)
    assert (await FunctionReward(lambda trace: True, "mine")(TRACES))[0] == Score(value=1.0)


@pytest.mark.parametrize(
    "value", ["0.5", float("nan"), torch.tensor([1.0, 2.0]), np.zeros(0), {"score": 1}]
)
async def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(RunBroken, match="'mine', found"):
        await FunctionReward(lambda trace: value, "mine")(TRACES)


async def test_a_reward_that_fails_once_leaves_one_trace_unscored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails_once(trace: Trace) -> float:
        return 1 / int(trace.id, 16)

    scores = await FunctionReward(fails_once, "mine")(TRACES)
    assert [score and score.value for score in scores] == [None, 1.0, 0.5]
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(RunBroken, match="failed for all 1 traces, the last with ZeroDivisionError"):
        await FunctionReward(fails_once, "mine")(TRACES[:1])
