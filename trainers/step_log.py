"""The log of a training step: one line of `log.jsonl` and of the checkpoint's log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(kw_only=True)
class StepUpdate:
    """One optimiser step."""

    stepped: bool = False
    """False if there was nothing to learn from, or the effective sample size was too small."""
    tokens_trained: int = 0
    positions_forwarded: int = 0
    """Tokens that went through the model, each shared prefix once."""
    positions_in_rows: int = 0
    """Tokens that would have gone through it without sharing."""
    ratio: float = 1.0
    """Mean importance ratio at the step's start: the trainer's probability of a sampled token over the recorded one."""
    gap: float = 0.0
    """Mean |difference| of log-probabilities between trainer and record, in nats a token."""
    sampler_kl: float = 0.0
    """KL of the trained policy to the one that sampled (k3 estimate), in nats a token."""
    kl: float = 0.0
    """KL to the base model (k3 estimate), in nats a token."""
    ess: float = 1.0
    """Effective sample size of the trajectories' weights, as a share of their number."""
    entropy: float = 0.0
    clipped: float = 0.0
    """Share of the tokens whose ratio was clipped."""
    grad_norm: float = 0.0


@dataclass(kw_only=True)
class StepLog(StepUpdate):
    """A step: what was played, how it was graded, what was learned, and how long it took."""

    step: int = 0
    reward: float | None = None
    """Mean over the episodes that could be scored."""
    reward_quartiles: list[float] | None = None
    parts: dict[str, float] = field(default_factory=dict)
    success: float | None = None
    """Share of the episodes that reached their goal; None if no scenario has one."""
    offered: float = 0.0
    """Share of the episodes in which the policy was given tools."""
    used: float = 0.0
    """Share of the episodes in which it called one."""
    unscored: int = 0
    violations: float = 0.0
    """Share of the episodes in which a rule denied an attempt."""
    episodes: int = 0
    constrained: int = 0
    """Model calls that were not trained on, because something forced their tokens, such as `tool_choice`."""
    forks: int = 0
    tokens_sampled: int = 0
    flat_groups: float = 0.0
    """Share of the groups without any advantage."""
    zero_advantage: float = 0.0
    """Share of the episodes without any advantage."""
    nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    learning_rate: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    """Shares of limited events."""
    multipliers: dict[str, float] = field(default_factory=dict)
    alarm: str = ""
    """The alarm of the monitor for reward hacking."""
    scenarios: list[str] = field(default_factory=list)
    concurrency: int = 0
    redrawn: int = 0
    """Episodes of groups with equal rewards that were replaced."""
    changes: list[str] = field(default_factory=list)
    """Settings that the schedule changed after this step, each with its reason."""
    prefix_hits: float | None = None
    """Share of the prompt tokens that came out of the server's prefix cache."""
    held_out: dict[str, float] = field(default_factory=dict)
    """What was measured on held-out scenarios after this step."""
    seconds_rollout: float = 0.0
    seconds_train: float = 0.0
    seconds: float | None = None
    """None until the work after the commit is done."""
    ended: str = ""
    """Why a run ends early with this step."""

    @classmethod
    def of(cls, update: StepUpdate, **values: Any) -> Self:
        return cls(**{f.name: getattr(update, f.name) for f in fields(StepUpdate)}, **values)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        return cls(**line)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
