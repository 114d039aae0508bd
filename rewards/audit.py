"""The audit: what can a reward be talked into? `stateset-agents rewards audit NAME`."""

from collections.abc import Sequence
from dataclasses import dataclass

from stateset_agents.reward import Reward, Score, declaration_of
from stateset_agents.rewards.attacks import ATTACKS, SITUATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How an attack did: its best score against the honest answer's, over all situations."""

    attack: str
    honest: float | None
    """What the honest answer got in the situation in which the attack came closest."""
    best: float | None
    """What the attack got there; None where it could not be scored anywhere."""
    gamed: bool
    """Whether it reached the honest answer's score; of a reward that only takes away, whether it beat it."""


async def audit(reward: Reward) -> list[Finding]:
    """How every attack does. Each situation is scored as a group, with its honest answer in it."""
    only_takes = declaration_of(reward).high <= 0
    rows: list[list[Score | None]] = []
    for situation in SITUATIONS:
        group = [situation.honest, *(attack(situation) for attack in ATTACKS.values())]
        rows.append(list(await reward(group)))
    results = []
    for number, attack in enumerate(ATTACKS, start=1):
        gaps = _gaps(rows, number)
        if not gaps:
            honest = next((row[0].value for row in rows if row[0] is not None), None)
            results.append(Finding(attack=attack, honest=honest, best=None, gamed=False))
            continue
        _, honest, best = max(gaps)
        gamed = best > honest + 1e-9 if only_takes else best > honest - 1e-9
        results.append(Finding(attack=attack, honest=honest, best=best, gamed=gamed))
    return results


def _gaps(rows: Sequence[Sequence[Score | None]], number: int) -> list[tuple[float, float, float]]:
    pairs = [(row[0], row[number]) for row in rows]
    return [
        (b.value - h.value, h.value, b.value) for h, b in pairs if h is not None and b is not None
    ]
