"""Scores are kept by content, version and settings."""

from pathlib import Path
from typing import Any

import pytest

from stateset_agents.reward import Declaration, EachTrace, Reward, Score
from stateset_agents.rewards.cache import CachedReward
from stateset_agents.rewards.composite import (
    CompositeReward,
    GatedReward,
)
from stateset_agents.rewards.effort import EffortReward
from stateset_agents.rewards.feedback import FeedbackReward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.objectives import ObjectivesReward
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.trace import Feedback, Trace
from tests.rewards.test_rewards import RIGHT, SALAD, timed


async def test_scores_are_kept_by_content_and_version(tmp_path: Path) -> None:
    class Counts(EachTrace):
        name, declaration = "counts", Declaration(version="1", reads=("messages",))
        calls = 0

        def score(self, trace: Trace) -> Score | None:
            self.calls += 1
            return None if trace is SALAD else Score(value=1.0)

    counts = Counts()
    kept = CachedReward(counts, tmp_path / "scores.db")
    renamed = RIGHT.model_copy(update={"id": "another"})
    assert await kept([RIGHT, renamed, SALAD]) == [Score(value=1.0), Score(value=1.0), None]
    assert counts.calls == 2
    await kept([RIGHT, SALAD])
    assert counts.calls == 3  # what could not be scored is tried again
    counts.declaration = Declaration(version="2", reads=("messages",))
    kept.close()
    newer = CachedReward(counts, tmp_path / "scores.db")
    await newer([RIGHT])
    assert counts.calls == 4
    newer.close()


@pytest.mark.parametrize(
    ("row", "other"),
    [
        (ObjectivesReward({"csat": 1.0}), ObjectivesReward({"first_contact": 2.0})),
        (FeedbackReward("csat", low=1, high=5), FeedbackReward("thumbs")),
        (CompositeReward([HelpfulnessReward(), SafetyReward()]), CompositeReward([HelpfulnessReward(), SafetyReward()], how="min")),
        (HelpfulnessReward(), HelpfulnessReward(writes=())),
        (EffortReward(20), EffortReward(2)),
        (GatedReward(HelpfulnessReward(), {OutcomeReward(): 1.0}), GatedReward(HelpfulnessReward(), {OutcomeReward(): 0.1})),
    ],
)  # fmt: skip
async def test_a_cache_never_gives_the_score_of_another_setting(
    row: Any, other: Any, tmp_path: Path
) -> None:
    reply = (Feedback(key="csat", value=5.0), Feedback(key="thumbs", value=0.0))
    trace = timed(*[0.1] * 5).model_copy(update={"feedback": reply})
    first, second = CachedReward(row, tmp_path / "s.db"), CachedReward(other, tmp_path / "s.db")
    for kept, reward in ((first, row), (second, other), (first, row)):
        assert await kept([trace]) == await reward([trace])
    first.close()
    second.close()


async def test_parts_of_one_name_are_all_counted() -> None:
    reply = (Feedback(key="csat", value=5.0), Feedback(key="thumbs", value=0.0))
    trace = RIGHT.model_copy(update={"feedback": reply})
    both: dict[Reward, float] = {
        FeedbackReward("csat", low=1, high=5): 1.0,
        FeedbackReward("thumbs"): 1.0,
    }
    (score,) = await CompositeReward(both)([trace])
    assert score is not None
    assert (score.value, score.parts) == (1.0, {"feedback": 1.0, "feedback#2": 0.0})
