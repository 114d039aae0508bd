"""Advantages compare episodes of one group; what could not be scored is not a zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.trainers.advantages import accepted, centred_advantages, group_advantages


def naive(rewards: list[float | None]) -> list[float]:
    """The mistake: an episode that could not be scored counts as 0."""
    filled = [0.0 if r is None else r for r in rewards]
    mean = sum(filled) / len(filled)
    return [r - mean for r in filled]


def test_the_example_of_the_module() -> None:
    assert group_advantages([1, 0, 0, 1]) == [1, -1, -1, 1]
    assert group_advantages([1, None, 1]) == [0, 0, 0]
    assert naive([1, None, 1])[0] > 0


def test_without_the_deviation_a_small_difference_stays_small() -> None:
    """One more call costs an episode 0.005: no reason to learn as much from it as from a success."""
    assert centred_advantages([1.0, 0.0]) == [0.5, -0.5]
    assert group_advantages([0.975, 0.97]) == pytest.approx([1, -1])
    assert centred_advantages([0.975, 0.97]) == pytest.approx([0.0025, -0.0025])
    assert centred_advantages([0.1 + 0.2, 0.3]) == [0, 0]


def test_rejection_keeps_the_best_of_a_group_and_nothing_of_equals() -> None:
    assert accepted([0.2, 1.0, None, 1.0]) == [0, 1, 0, 1]
    assert accepted([0.5, 0.5]) == [0, 0]
    assert accepted([None, 1.0]) == [0, 0]


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        group_advantages([1.0])


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=2, max_size=16))
def test_advantages_of_a_group_sum_to_zero(rewards: list[float | None]) -> None:
    advantages = group_advantages(rewards)
    assert sum(advantages) == pytest.approx(0, abs=1e-5)
    assert all(a == 0 for a, r in zip(advantages, rewards, strict=True) if r is None)


@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=8),
    st.integers(1, 5),
    st.integers(-9, 9),
)
def test_scale_and_shift_of_rewards_change_nothing(
    rewards: list[int], scale: int, shift: int
) -> None:
    moved = [float(scale * r + shift) for r in rewards]
    plain = [float(r) for r in rewards]
    assert group_advantages(moved) == pytest.approx(group_advantages(plain), abs=1e-6)
