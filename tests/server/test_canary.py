"""A new version for a share of the conversations."""

import random

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.server.canary import Canary


def live(canary: Canary, trouble: dict[str, float], conversations: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    for number in range(conversations):
        name = f"{seed}-{number}"
        version = canary.version(name)
        for _ in range(2):
            assert canary.decided or canary.version(name) == version
            canary.saw(name, rng.random() < trouble[version] / 2)


def test_a_worse_version_is_rolled_back_and_answers_nobody_any_more() -> None:
    messages: list[str] = []
    canary = Canary("old", "new", share=0.2, say=messages.append)
    live(canary, {"old": 0.05, "new": 0.4}, 1000)
    assert canary.decided == "rolled back"
    assert canary.counts()[0][1] < 100
    assert {canary.version(str(number)) for number in range(100)} == {"old"}
    assert "rolled back" in messages[0]


def test_a_version_that_is_no_worse_is_promoted() -> None:
    canary = Canary("old", "new", share=0.2, say=lambda messages: None)
    live(canary, {"old": 0.1, "new": 0.1}, 3000)
    assert canary.decided == "promoted"
    assert {canary.version(str(number)) for number in range(100)} == {"new"}


def test_looking_often_seldom_condemns_an_equal_one() -> None:
    """One look at 0.01 errs once in a hundred; five looks a few times."""
    condemned = 0
    for seed in range(60):
        canary = Canary("old", "new", share=0.3, say=lambda messages: None)
        live(canary, {"old": 0.2, "new": 0.2}, 1200, seed)
        condemned += canary.decided == "rolled back"
    assert condemned <= 5


def test_the_share_is_kept_and_senseless_ones_are_refused() -> None:
    canary = Canary("old", "new", share=0.1)
    new = sum(canary.version(f"thread-{number}") == "new" for number in range(10_000))
    assert 850 < new < 1150
    with pytest.raises(BadInput, match="--canary-share"):
        Canary("old", "new", share=1.5)
