"""The schedule and the curriculum, driven with scripted curves."""

import json
from typing import Any

import pytest

from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.curriculum import RESTED, Curriculum
from stateset_agents.trainers.schedule import Schedule
from stateset_agents.trainers.step_log import StepLog


def line(reward: float | None, **more: float) -> StepLog:
    values: dict[str, Any] = {"flat_groups": 0.2, "success": 0.5, "kl": 0.01, **more}
    return StepLog(reward=reward, **values)


def run(schedule: Schedule, lines: list[StepLog]) -> list[str]:
    return [change for log in lines for change in schedule.see(log)]


def auto(**options: Any) -> TrainConfig:
    return TrainConfig(auto_adjust=True, **options)


def test_a_rising_reward_changes_nothing() -> None:
    schedule = Schedule(auto())
    assert run(schedule, [line(0.1 * n) for n in range(12)]) == []
    assert schedule.config == schedule._initial


def test_a_reward_that_falls_halves_the_learning_rate_and_says_why() -> None:
    schedule = Schedule(auto(learning_rate=1e-3))
    changes = run(schedule, [line(0.8)] * 4 + [line(0.5)] * 4)
    assert changes == [
        "learning_rate 0.001 -> 0.0005: the mean reward fell from 0.800 to 0.500 over 4 steps"
    ]
    assert schedule.config.learning_rate == 5e-4
    assert run(schedule, [line(0.5)] * 3) == []  # a change is given a window to work


def test_noise_is_no_fall() -> None:
    schedule = Schedule(auto())
    noisy = [0.5, 0.7, 0.4, 0.6, 0.45, 0.65, 0.4, 0.6]
    assert run(schedule, [line(r) for r in noisy]) == []


def test_the_kls_weight_is_steered_to_its_target() -> None:
    schedule = Schedule(auto(beta=0.02, kl_target=0.05))
    run(schedule, [line(0.5, kl=0.2)] * 8)
    assert schedule.config.beta == pytest.approx(0.03)
    calm = Schedule(auto(beta=0.02, kl_target=0.05))
    changes = run(calm, [line(0.5, kl=0.001)] * 8)
    assert calm.config.beta == pytest.approx(0.02 / 1.5)
    assert "KL 0.0010 for a target of 0.05" in changes[0]


def test_groups_that_agree_get_larger_then_hotter_and_back() -> None:
    schedule = Schedule(auto(group_size=8))
    run(schedule, [line(0.5, flat_groups=0.9)] * 16)
    assert schedule.config.group_size == 16
    assert schedule.config.temperature == pytest.approx(1.1)
    run(schedule, [line(0.5, flat_groups=0.1)] * 8)
    assert schedule.config.group_size == 8
    solved = Schedule(auto(group_size=8))
    assert run(solved, [line(0.99, flat_groups=0.9, success=0.98)] * 12) == []


def test_a_plateau_ends_the_run_and_a_slope_does_not() -> None:
    patience = 4
    config = TrainConfig(early_stopping=True, patience=patience)
    flat = Schedule(config)
    changes = run(flat, [line(0.5 + 0.01 * (n % 3)) for n in range(3 * patience)])
    assert flat.plateau is not None
    assert "plateau" in changes[-1]
    slope = Schedule(config)
    run(slope, [line(0.02 * n) for n in range(40)])
    assert slope.plateau is None


def test_what_is_not_asked_for_does_not_happen() -> None:
    schedule = Schedule(TrainConfig())
    assert run(schedule, [line(0.8)] * 10 + [line(0.1)] * 30) == []
    assert schedule.plateau is None


def test_it_goes_on_as_if_it_had_never_stopped() -> None:
    curve = [line(0.8)] * 4 + [line(0.5, flat_groups=0.9)] * 20
    whole, parts = Schedule(auto()), Schedule(auto())
    changes = run(whole, curve)
    again = []
    for log in curve:
        again += parts.see(log)
        parts = Schedule(auto(), json.loads(json.dumps(parts.state)))
    assert again == changes
    assert parts.config == whole.config


def test_in_turn_every_scenario_comes() -> None:
    plain = Curriculum(5, False, 1)
    assert [plain.choose(step, 2) for step in (1, 2, 3)] == [[0, 1], [2, 3], [4, 0]]
    assert plain.state == {}
    assert plain.choose(1, 3, again=1) == plain.choose(1, 3, again=1) != plain.choose(1, 3, again=2)


def test_an_adaptive_one_revisits_the_middle_drops_the_solved_and_tries_the_hopeless_again() -> (
    None
):
    rates = {0: 1.0, 1: 0.0, 2: 0.5}  # the rest are never seen
    adaptive = Curriculum(12, True, 1)
    seen: list[list[int]] = []
    for step in range(1, 2 * RESTED):
        chosen = adaptive.choose(step, 4)
        seen.append(chosen)
        adaptive.see(chosen, [rates.get(place, 1.0) for place in chosen])
    counts = {place: sum(place in log for log in seen) for place in range(12)}
    assert counts[2] > 2 * max(counts[n] for n in (0, 1, 5))
    assert counts[0] >= 3  # looked at twice, and again after a rest
    assert all(len(set(log)) <= 4 for log in seen)
    assert adaptive.buckets() == {"unseen": 0, "failed": 1, "middle": 1, "solved": 10}


def test_a_resumed_curriculum_chooses_alike() -> None:
    whole, parts = Curriculum(9, True, 3), Curriculum(9, True, 3)
    for step in range(1, 30):
        a, b = whole.choose(step, 3), parts.choose(step, 3)
        assert a == b
        for log in (whole, parts):
            log.see(a, [(place * 7 % 10) / 10 for place in a])
        parts = Curriculum(9, True, 3, json.loads(json.dumps(parts.state)))
