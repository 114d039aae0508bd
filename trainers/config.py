"""How a policy is trained: every setting, what it may be, and what goes together."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stateset_agents.frozen import Frozen
from stateset_agents.trainers.algorithms import ALGORITHMS

ONE = "default"
"""The adapter's name where there is one, which is PEFT's."""
Precision = Literal["fp32", "bf16", "fp16"]
AlgorithmName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "rejection"]
Credit = Literal["trajectory", "node", "turn"]
Profile = Literal["conservative", "balanced", "aggressive"]
PROFILES: dict[Profile, dict[str, Any]] = {
    "conservative": {"learning_rate": 5e-4, "beta": 0.02},
    "balanced": {"learning_rate": 1e-3},
    "aggressive": {"learning_rate": 2e-3},
}
"""What a profile sets, where nothing else is said: how fast a policy moves, and what holds it back."""


class TrainConfig(Frozen):
    """How a policy is trained. Every field is read, or refused; the defaults are what the demo runs with."""

    steps: int = Field(default=32, ge=1)
    groups: int = Field(default=8, ge=1)
    """Scenarios a step."""
    group_size: int = Field(default=8, ge=2)
    """Episodes a scenario."""
    algorithm: AlgorithmName = "dr_grpo"
    learning_rate: float = Field(default=1e-3, gt=0)
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the base model."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats a token from the base that `auto_adjust` steers `beta` to."""
    clip_low: float | None = Field(default=None, ge=0)
    """How far an importance ratio may fall below 1; None: as the algorithm's paper has it."""
    clip_high: float | None = Field(default=None, ge=0)
    """How far it may rise above 1."""
    importance: Literal["recorded", "decoupled", "tapered"] = "recorded"
    """`recorded`: the ratio is against the log-probabilities that were recorded. `decoupled` (arXiv 2505.24298): it is against the
    policy before the step, and what lies between that and the recorded is a weight, truncated per token. `tapered` (TOPR, arXiv
    2503.14286): what was good weighs 1, and what was bad as much as the whole of it is still likely: for stores."""
    importance_cap: float = Field(default=2.0, gt=0)
    """Where a token's weight is truncated; `decoupled` reads it."""
    resample: int = Field(default=0, ge=0, le=8)
    """How often a step may sample more scenarios in the place of groups that agree; `dapo` reads it."""
    overlong: tuple[int, int] | None = None
    """Sampled tokens of an episode from which it pays, and from which it pays 1; `dapo` reads it."""
    credit: Credit = "trajectory"
    """What is compared: whole episodes; episodes at each node that they reached; at each turn."""
    forks: int = Field(default=0, ge=0)
    """How many of the `group_size` episodes go on from a decision of another one, from its checkpoint and on a clone of its shop."""
    nodes: tuple[str, ...] = ()
    """The graph's nodes, or the orchestrator's agents, that train; all of them where none is named."""
    adapters: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """An adapter for each name, and the nodes that answer with it; one for all where none is named."""
    limits: dict[str, float] = Field(default_factory=dict)
    """Constraints: the share of episodes, by what they do (`violations`, `truncated`, `escalations`, or module:function), that may."""
    limit_rate: float = Field(default=5.0, gt=0)
    """How much a multiplier rises in a step for each whole share above its limit; `limits` reads it."""
    epochs: int = Field(default=1, ge=1)
    """How often a store's groups are gone through; training from a store reads it."""
    least_ess: float = Field(default=0.3, gt=0, lt=1)
    """The effective sample size, as a share of the trajectories, below which a store has no more to say of the policy; training from a
    store reads it."""
    auto_adjust: bool = False
    """Adapt the learning rate, the KL's weight, the temperature, the group size and the choice of scenarios to what is measured."""
    early_stopping: bool = False
    """End when the last `patience` steps are not better than those before them."""
    patience: int = Field(default=8, ge=2)
    temperature: float = Field(default=1.0, gt=0, le=2)
    max_tokens: int = Field(default=96, ge=1)
    """Tokens a model call may sample."""
    full: bool = False
    """Train all weights and no adapter."""
    rank: int = Field(default=16, ge=1)
    lora_alpha: Annotated[int, Field(ge=1)] | None = None
    """None: twice the rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Precision = "fp32"
    """What is computed in. What is trained is float32 in either."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    tokens_per_batch: int = Field(default=6144, ge=16)
    """Distinct tokens that go through the model at once."""
    episodes_per_batch: int = Field(default=1024, ge=1)
    """Episodes that go through the model at once, where they fit."""
    keep_every: int = Field(default=0, ge=0)
    """Every so-manieth step's weights are kept for good; 0: the last ones alone."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them; a conversation beyond `tokens_per_batch` always does."""
    concurrency: int = Field(default=64, ge=0, le=1024)
    """Episodes at a time; 0: as many as raise the tokens a second, found by measuring."""
    staleness: int = Field(default=0, ge=0, le=8)
    """Steps by which the policy that samples may be older than the one that trains; above 0, roll-outs and training overlap."""
    seed: int = 1
    shuffle_rewards: bool = False
    """A control: rewards are shuffled within each group, so that there is nothing to learn."""

    @model_validator(mode="after")
    def _agrees(self) -> "TrainConfig":
        algorithm = ALGORITHMS[self.algorithm]
        for name in ("clip_low", "clip_high"):
            if getattr(self, name) is not None and getattr(algorithm, name) is None:
                raise ValueError(f"{name}: {self.algorithm} does not read it")
        for name in ("resample", "overlong"):
            if getattr(self, name) and name not in algorithm.reads:
                readers = [other.name for other in ALGORITHMS.values() if name in other.reads]
                raise ValueError(
                    f"{name}: {self.algorithm} does not read it, {', '.join(readers)} does"
                )
        if self.overlong is not None and not 0 < self.overlong[0] < self.overlong[1]:
            raise ValueError(f"overlong: expected 0 < from < to, found {self.overlong}")
        if self.importance == "recorded" and "importance_cap" in self.model_fields_set:
            raise ValueError("importance_cap: importance 'decoupled' alone reads it")
        if self.full:
            for name in ("rank", "lora_alpha", "lora_dropout", "adapters"):
                if getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise ValueError(f"{name}: there is no adapter where all weights are trained")
            if self.beta:
                raise ValueError(
                    "beta: expected 0 where all weights are trained, since the base to stay close to is gone"
                )
        given = [node for nodes in self.adapters.values() for node in nodes]
        if len(given) != len(set(given)):
            raise ValueError(f"adapters: expected each node in one alone, found {sorted(given)}")
        if any(not nodes for nodes in self.adapters.values()):
            raise ValueError("adapters: expected at least one node for each")
        if self.adapters and self.nodes:
            raise ValueError("nodes: adapters name the nodes that train already")
        if self.shuffle_rewards and self.credit != "trajectory":
            raise ValueError("shuffle_rewards: it is a control of credit 'trajectory' alone")
        if self.forks and self.credit != "trajectory":
            raise ValueError("forks: they are compared at their decisions, and not by node or turn")
        if self.forks and self.shuffle_rewards:
            raise ValueError("shuffle_rewards: it is a control of whole episodes, and not of forks")
        if self.forks and self.forks > self.group_size - 2:
            raise ValueError(f"forks: expected two whole episodes of {self.group_size} at least")
        if "limit_rate" in self.model_fields_set and not self.limits:
            raise ValueError("limit_rate: limits alone read it, and there are none")
        if "patience" in self.model_fields_set and not self.early_stopping:
            raise ValueError("patience: early_stopping alone reads it")
        if self.kl_target is not None and not (self.auto_adjust and self.beta):
            raise ValueError("kl_target: auto_adjust reads it, and only with a beta to steer")
        for name, share in self.limits.items():
            if not 0 <= share < 1:
                raise ValueError(f"limits: expected a share from 0 to 1 for {name}, found {share}")
        return self

    @property
    def trained(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each adapter; none named is all of them."""
        return dict(self.adapters) or {ONE: self.nodes}
