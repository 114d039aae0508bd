"""Log lines of imitation, without importing TRL."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitationLog:
    """TRL's log values of some steps."""

    step: int
    method: str
    loss: float
    tokens_trained: int
    rewards: dict[str, float] = field(default_factory=dict)
    """DPO's implicit rewards, by TRL's names."""
