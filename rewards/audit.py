"""The audit: what does a reward pay for attacks? `stateset-agents rewards audit NAME`."""

from collections.abc import Sequence
from dataclasses import dataclass

from stateset_agents.reward import Reward, Score, declaration_of
from stateset_agents.rewards.attacks import ATTACKS, SITUATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How an attack did: its best score against the honest answer's, over all situations."""

    attack: str
    honest: float | None
    """The honest answer's score in the situation where the attack was closest."""
    best: float | None
    """The attack's score there; None if it could not be scored in any situation."""
    gamed: bool
    """Whether it reached the honest answer's score; for a reward that only subtracts, whether it exceeded it."""


async def audit(reward: Reward) -> list[Finding]:
    """The result of every attack. Each situation is scored as a group together with its honest answer."""
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
