"""What a measurement says, and when it says nothing."""

from typing import Any

import pytest

from stateset_agents.evaluation import Measurement, measure
from stateset_agents.reward import Score
from stateset_agents.scenario import Goal, Scenario
from stateset_agents.trace import ModelCall, ToolCall, Trace

WITH_GOAL, WITHOUT = Scenario(id="s", goal=Goal()), Scenario(id="s")
UNREACHED = Scenario(id="s", goal=Goal(consulted=(("look",),)))
USED = ToolCall(id="1", name="look", arguments={}, status="done", result="")


def trace(scenario: Scenario = WITHOUT, *, offered: int = 0, **fields: Any) -> Trace:
    calls = (ModelCall(response_id="r", offered=offered),)
    return Trace(scenario=scenario, model_calls=calls, **fields)


def measured(traces: list[Trace], scores: list[Score | None], **options: Any) -> Measurement:
    return measure(traces, scores, version="v", temperature=1.0, **options)


def test_a_failed_episode_is_no_outcome() -> None:
    failed = trace(WITH_GOAL, status="failed", error="no answer")
    result = measured([trace(WITH_GOAL), failed], [None, None])
    assert (result.outcomes, result.success, result.failed) == ((1.0, None), 1.0, 1)
    assert result.errors == {"no answer": 1}
    assert result.problem is None


@pytest.mark.parametrize(
    ("traces", "reason"),
    [
        ([trace(WITH_GOAL, status="failed", error="no key")] * 2, "all 2 failed: no key"),
        (
            [trace(WITH_GOAL, status="waiting", error="asks")] * 2,
            "all 2 waited for an answer: asks",
        ),
        ([trace()] * 2, "none among 2"),
        ([trace(UNREACHED, offered=3)] * 2, "no call in 2 episodes"),
    ],
)
def test_what_measures_nothing_says_why(traces: list[Trace], reason: str) -> None:
    assert reason in str(measured(traces, [None] * len(traces)).problem)


def test_what_measures_something_has_no_problem() -> None:
    silent = measured([trace(offered=3)], [Score(value=0.5)])
    assert silent.problem is None
    assert "no call in 1 episodes" in str(silent.no_tools)
    called = trace(WITH_GOAL, offered=3, tool_calls=(USED,))
    assert measured([called, trace(WITH_GOAL, offered=3)], [None, None]).problem is None
    assert measured([trace()], [Score(value=0.0)]).problem is None
    assert measured([trace()], [None], compared=True).problem is None
