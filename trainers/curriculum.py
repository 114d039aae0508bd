"""The curriculum: which scenarios a step plays. In turn; or adaptive, by how often each succeeded.

unseen                 played in turn
0.2 to 0.8             played again: there is most to compare
solved twice (>= 0.95) dropped, and looked at again after a while
hopeless twice (0)     rested, and tried again after a while
"""

import random
from collections.abc import Sequence
from typing import Any

REVISITED = 0.5
"""Share of an adaptive step's groups for scenarios of middle difficulty."""
RESTED = 16
"""Steps until a dropped or rested scenario can be chosen again."""


class Curriculum:
    """`choose` depends only on the seen results, the step and the seed, so a resumed run chooses the same."""

    def __init__(
        self, count: int, adaptive: bool, seed: int, state: dict[str, Any] | None = None
    ) -> None:
        self.count, self.adaptive, self.seed = count, adaptive, seed
        kept = state or {}
        self._next = int(kept.get("next", 0))
        self._step = int(kept.get("step", 0))
        self._rates: dict[int, list[float]] = {int(n): r for n, r in kept.get("rates", {}).items()}
        self._at: dict[int, int] = {int(n): s for n, s in kept.get("at", {}).items()}

    @property
    def state(self) -> dict[str, Any]:
        """The state of `Curriculum` for a resume."""
        if not self.adaptive:
            return {}
        return {"next": self._next, "step": self._step, "rates": self._rates, "at": self._at}

    def see(self, places: Sequence[int], successes: Sequence[float | None]) -> None:
        """Record the success of a step's groups."""
        self._step += 1
        for place, success in zip(places, successes, strict=True):
            if success is not None:
                self._rates.setdefault(place, []).append(success)
                self._rates[place] = self._rates[place][-2:]
                self._at[place] = self._step

    def choose(self, step: int, groups: int, again: int = 0) -> list[int]:
        """Places of the scenarios that a step plays; `again` chooses others for the same step."""
        if again:
            rng = random.Random(f"{self.seed}/{step}/{again}")
            if groups <= self.count:
                return rng.sample(range(self.count), groups)
            return [rng.randrange(self.count) for _ in range(groups)]
        if not self.adaptive:
            return [((step - 1) * groups + n) % self.count for n in range(groups)]
        rng = random.Random(f"{self.seed}/{step}")
        middle = [
            n for n, rates in sorted(self._rates.items()) if 0.2 <= sum(rates) / len(rates) <= 0.8
        ]
        again_now = rng.sample(middle, min(len(middle), int(REVISITED * groups)))
        return again_now + self._in_turn(groups - len(again_now), set(again_now))

    def _in_turn(self, wanted: int, taken: set[int]) -> list[int]:
        places: list[int] = []
        for _ in range(2 * self.count):
            if len(places) == wanted:
                break
            place = self._next % self.count
            self._next += 1
            if place not in taken and not self._resting(place):
                places.append(place)
                taken.add(place)
        while len(places) < wanted:  # fewer scenarios than a step plays: some come twice
            places.append(self._next % self.count)
            self._next += 1
        return places

    def _resting(self, place: int) -> bool:
        rates = self._rates.get(place, [])
        if len(rates) < 2 or self._step - self._at[place] >= RESTED:
            return False
        return min(rates) >= 0.95 or max(rates) == 0.0

    def buckets(self) -> dict[str, int]:
        """Number of scenarios in each state, for the log."""
        every = [sum(rates) / len(rates) for rates in self._rates.values()]
        return {
            "unseen": self.count - len(every),
            "failed": sum(rate < 0.2 for rate in every),
            "middle": sum(0.2 <= rate <= 0.8 for rate in every),
            "solved": sum(rate > 0.8 for rate in every),
        }
