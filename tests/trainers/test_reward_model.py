"""A neural reward learned from a few preferences, small: it learns, keeps the protocol, and knows what it does not know."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
import torch

from stateset_agents.errors import BadInput
from stateset_agents.graphs.mixed_quality import pairs
from stateset_agents.jobs.registry import find_reward
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.rewards.conformance import problems
from stateset_agents.tools.scenarios.generator import scenarios
from stateset_agents.trace import Feedback, Trace
from stateset_agents.trainers.reward_model import (
    NeuralReward,
    Pair,
    _score,
    _temperature,
    preferences,
    train_reward_model,
)


@pytest.fixture(scope="module")
def preference_pairs() -> list[Pair]:
    some = list(itertools.islice(scenarios(seed=5, split="train", intents=("price_question",)), 70))

    async def play() -> list[Pair]:
        return [(better.trace, worse.trace) async for better, worse in pairs(some, seed=2)]

    return asyncio.run(play())


@pytest.mark.filterwarnings("ignore")
async def test_it_learns_from_preferences_and_is_served_like_any_reward(
    preference_pairs: list[Pair], tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    result = train_reward_model(SEED_POLICY, preference_pairs[:60], tmp_path, epochs=1.0)
    assert result.held_out == 6
    stored = json.loads((tmp_path / "reward.json").read_text())
    assert stored["accuracy"] == result.accuracy
    reward = find_reward(f"neural:{tmp_path}")
    assert isinstance(reward, NeuralReward)
    assert await problems(reward) == []
    both = [await reward(list(pair)) for pair in preference_pairs[:60]]
    right = sum(
        a.parts["chance"] > b.parts["chance"] for a, b in both if a is not None and b is not None
    )
    assert right >= 36  # chance is 30
    salad, honest = Trace(messages=({"role": "user", "content": "x"}, {"role": "assistant", "content": "happy help refund done"})), preference_pairs[1][0]  # fmt: skip
    low, high = await reward([salad, honest])
    assert low is not None
    assert high is not None
    assert low.value < high.value


def test_what_the_heads_differ_on_is_drawn_to_the_middle() -> None:
    sure, unsure = _score(3.0, 0.1), _score(3.0, 3.0)
    assert sure.value > 0.9
    assert 0.5 < unsure.value < 0.6
    assert _score(-3.0, 3.0).value > 0.4
    assert sure.parts["chance"] == unsure.parts["chance"]


def test_the_temperature_makes_chances_of_differences() -> None:
    gaps = 2.0 + 2.0 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    assert 1.0 <= _temperature(gaps) <= 4.0
    assert 10.0 <= _temperature(10 * gaps) <= 40.0


def test_preferences_of_a_store_are_pairs_of_one_request(preference_pairs: list[Pair]) -> None:
    better, worse = preference_pairs[1]
    again = preferences([worse, better, preference_pairs[2][0]])
    assert again == [(better, worse)]

    def rated(value: float) -> Trace:
        return better.model_copy(update={"feedback": (Feedback(key="csat", value=value),)})

    liked, not_liked = rated(5.0), rated(2.0)
    assert preferences([not_liked, liked, better], feedback="csat") == [(liked, not_liked)]
    with pytest.raises(BadInput, match="at least 50"):
        train_reward_model(SEED_POLICY, again, Path("nowhere"))
    with pytest.raises(BadInput, match="rewards train"):
        NeuralReward(Path("nowhere"))
