"""A reward that parts from what the shop verified is noticed."""

import random

from stateset_agents.rewards.gaming_monitor import GamingMonitor


def test_the_watch_sees_a_reward_part_from_what_was_verified() -> None:
    rng = random.Random(1)

    def step(
        paid_for: float, share: float, count: int = 64
    ) -> tuple[list[float | None], list[bool | None]]:
        won = [rng.random() < share for _ in range(count)]
        return [paid_for + 0.5 * good + rng.gauss(0, 0.05) for good in won], list(won)

    honest, gamed, blind = GamingMonitor(), GamingMonitor(), GamingMonitor()
    assert [honest.see(*step(0.1 * n, 0.3 + 0.04 * n)) for n in range(12)] == [""] * 12
    output = [gamed.see(*step(0.1 * n, 0.7 - 0.05 * n)) for n in range(12)]
    assert output[:9] == [""] * 9
    assert "successes fell" in output[-1]
    noise = [
        blind.see([rng.random() for _ in range(64)], [rng.random() < 0.5 for _ in range(64)])
        for _ in range(6)
    ]
    assert "AUC" in noise[-1]
    assert GamingMonitor().see([None, 0.5], [True, None]) == ""
