"""A new version for a share of the conversations, until a guard metric shows that it is worse, or enough conversations show
that it is not.

conversations 20, 40, 80, … of the new version: is its failure rate higher? p < 0.01: rolled back
`enough` of them without that: promoted
"""

import math
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from stateset_agents.errors import BadInput

FIRST_LOOK = 20
MAX_CONVERSATIONS = 65_536
"""Conversations that are remembered."""


@dataclass
class Canary:
    """Chooses the version that answers a conversation. A conversation keeps its version until the decision."""

    stable: str
    new: str
    share: float = 0.1
    """Share of the conversations for the new version."""
    enough: int = 320
    """Conversations of the new version after which it is promoted."""
    p: float = 0.01
    """Significance level of each test for a roll-back."""
    say: Callable[[str], None] = print
    decided: Literal["promoted", "rolled back"] | None = None
    _trouble: OrderedDict[str, bool] = field(default_factory=OrderedDict)
    _look: int = FIRST_LOOK
    _counts: dict[bool, list[int]] = field(default_factory=lambda: {True: [0, 0], False: [0, 0]})

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise BadInput(
                f"--canary-share: expected more than 0 and less than 1, found {self.share}."
            )

    def version(self, conversation: str) -> str:
        """The version that answers this conversation."""
        if self.decided is not None:
            return self.new if self.decided == "promoted" else self.stable
        return self.new if self._is_new(conversation) else self.stable

    def saw(self, conversation: str, trouble: bool) -> None:
        """Record the end of a turn; a conversation with one bad turn counts as bad."""
        if self.decided is not None:
            return
        count = self._counts[self._is_new(conversation)]
        count[1] += conversation not in self._trouble
        count[0] += trouble and not self._trouble.get(conversation, False)
        self._trouble[conversation] = trouble or self._trouble.get(conversation, False)
        while len(self._trouble) > MAX_CONVERSATIONS:
            self._trouble.popitem(last=False)
        new, old = self.counts()
        if new[1] < min(self._look, self.enough) or old[1] < FIRST_LOOK:
            return
        self._look *= 2
        if _p_higher(new, old) < self.p:
            self._decide("rolled back", new, old)
        elif new[1] >= self.enough:
            self._decide("promoted", new, old)

    def counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Bad conversations and all conversations, of the new version and of the stable one."""
        (new_bad, new), (old_bad, old) = self._counts[True], self._counts[False]
        return (new_bad, new), (old_bad, old)

    def _is_new(self, conversation: str) -> bool:
        return zlib.crc32(conversation.encode()) / 2**32 < self.share

    def _decide(
        self, decided: Literal["promoted", "rolled back"], new: tuple[int, int], old: tuple[int, int]
    ) -> None:  # fmt: skip
        self.decided = decided
        self.say(
            f"{self.new} is {decided}: trouble in {new[0]} of {new[1]} conversations, and in {old[0]} of {old[1]} with {self.stable}"
        )


def _p_higher(new: tuple[int, int], old: tuple[int, int]) -> float:
    """p-value that the share of `new` is higher than that of `old` by chance: pooled one-sided z-test with continuity
    correction."""
    pooled = (new[0] + old[0]) / (new[1] + old[1])
    spread = math.sqrt(pooled * (1 - pooled) * (1 / new[1] + 1 / old[1]))
    if spread == 0:
        return 1.0
    gap = new[0] / new[1] - old[0] / old[1] - 0.5 * (1 / new[1] + 1 / old[1])
    return 0.5 * math.erfc(gap / spread / math.sqrt(2))
