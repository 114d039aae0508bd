"""What a judge may spend, and what it has spent."""

import math
from dataclasses import dataclass

from stateset_agents.errors import BadInput


@dataclass(slots=True)
class Budget:
    """The most that may be spent, in tokens and US dollars; calls under way count with their longest answer."""

    tokens: int | None = None
    usd: float | None = None
    per_million: tuple[float, float] | None = None
    """US dollars for a million tokens read and written, where litellm does not know the model's price."""
    spent_tokens: int = 0
    spent_usd: float = 0.0
    reserved_tokens: int = 0
    reserved_usd: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("tokens", self.tokens), ("usd", self.usd)):
            if most is not None and not (math.isfinite(most) and most > 0):
                raise BadInput(f"Expected a budget of more than 0 {name}, found {most}.")

    def reserve(self, tokens: int, usd: float) -> bool:
        """Reserve a call with its longest answer; False if the budget does not allow it."""
        if self.usd is not None and self.spent_usd + self.reserved_usd + usd > self.usd:
            return False
        if (
            self.tokens is not None
            and self.spent_tokens + self.reserved_tokens + tokens > self.tokens
        ):
            return False
        self.reserved_tokens += tokens
        self.reserved_usd += usd
        return True

    def cost(self, read: int, written: int) -> float | None:
        if self.per_million is None:
            return None
        return (read * self.per_million[0] + written * self.per_million[1]) / 1e6

    def settle(
        self, tokens: int, aside: float, used: tuple[int, int] | None, usd: float | None
    ) -> None:
        """Book the real cost of a call, even above its reservation; without a bill, the whole reservation."""
        self.reserved_tokens -= tokens
        self.reserved_usd -= aside
        self.spent_tokens += tokens if used is None else sum(used)
        paid = aside if used is None else self.cost(*used) if usd is None else usd
        self.spent_usd += aside if paid is None else paid
