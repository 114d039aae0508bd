"""Training settings: values, bounds, and combinations that are refused."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from stateset_agents.plain import Frozen
from stateset_agents.trainers.algorithms import ALGORITHMS

DEFAULT_ADAPTER = "default"
"""The name of a single adapter, as in PEFT."""
Precision = Literal["fp32", "bf16", "fp16"]
AlgorithmName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "rejection"]
Credit = Literal["trajectory", "node", "turn"]
Profile = Literal["conservative", "balanced", "aggressive"]
PROFILES: dict[Profile, dict[str, Any]] = {
    "conservative": {"learning_rate": 5e-4, "beta": 0.02},
    "balanced": {"learning_rate": 1e-3},
    "aggressive": {"learning_rate": 2e-3},
}
"""The settings of a profile: learning rate and KL weight."""


def option(default: Any, *, panel: str, played: bool = False, flag: str = "", **limits: Any) -> Any:
    """A field that is an option of the command line too: under `panel`, as `flag` where its own name does not fit. Its
    docstring is the help. `played`: it is about playing and measuring episodes, so it is not used when training from a
    store."""
    extra: dict[str, JsonValue] = {"panel": panel, "played": played, "flag": flag}
    if isinstance(default, dict):
        return Field(default_factory=dict, json_schema_extra=extra, **limits)
    return Field(default, json_schema_extra=extra, **limits)


EPISODES, STORE, LEARNING, CREDIT, MODEL, RUN = (
    "Episodes", "Training from a store", "Learning", "Credit and limits", "Model", "Run"
)  # fmt: skip
"""Panels of the command line's help."""


class TrainConfig(Frozen):
    """Training settings. A field that a mode does not use is refused; the defaults are the demo's."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    steps: int = option(32, panel=EPISODES, ge=1)
    """Optimiser steps."""
    groups: int = option(8, panel=EPISODES, ge=1)
    """Scenarios a step."""
    group_size: int = option(8, panel=EPISODES, played=True, ge=2)
    """Episodes a scenario."""
    forks: int = option(0, panel=EPISODES, played=True, ge=0)
    """Of these episodes, the number that continue from a decision of another one: from its checkpoint, on a clone of its shop."""
    temperature: float = option(1.0, panel=EPISODES, played=True, gt=0, le=2)
    """Sampling temperature."""
    max_tokens: int = option(96, panel=EPISODES, played=True, ge=1)
    """Tokens that a model call may sample."""
    concurrency: int = option(64, panel=EPISODES, played=True, ge=0, le=1024)
    """Episodes at once; 0: the number is found by measuring tokens a second."""
    staleness: int = option(0, panel=EPISODES, played=True, ge=0, le=8)
    """Steps by which the policy that samples may be older than the one that trains; above 0, roll-outs and training overlap."""
    resample: int = option(0, panel=EPISODES, played=True, ge=0, le=8)
    """At most so many redraws of groups with equal rewards (dapo)."""
    epochs: int = option(1, panel=STORE, ge=1)
    """Passes over the store."""
    least_ess: float = option(0.3, panel=STORE, gt=0, lt=1)
    """Effective sample size, as a share of the trajectories, below which the run ends."""
    algorithm: AlgorithmName = option("dr_grpo", panel=LEARNING)
    """The loss and the advantages (docs/training.md); rejection is a baseline."""
    learning_rate: float = option(1e-3, panel=LEARNING, gt=0)
    """Learning rate of AdamW."""
    beta: float = option(0.0, panel=LEARNING, ge=0)
    """Weight of the KL to the base model."""
    kl_target: float | None = option(None, panel=LEARNING, played=True, gt=0)
    """KL to the base model, in nats a token, that auto-adjust steers beta to."""
    clip_low: float | None = option(None, panel=LEARNING, ge=0)
    """How far an importance ratio may fall below 1; default: the paper's value."""
    clip_high: float | None = option(None, panel=LEARNING, ge=0)
    """How far it may rise above 1; default: the paper's value."""
    importance: Literal["recorded", "decoupled", "tapered"] = option("recorded", panel=LEARNING)
    """Importance ratio: against the recorded log-probabilities; decoupled from them (arXiv 2505.24298); or tapered, for stores
    (TOPR, arXiv 2503.14286)."""
    importance_cap: float = option(2.0, panel=LEARNING, gt=0)
    """Where a token's weight is truncated (decoupled)."""
    overlong: tuple[int, int] | None = option(None, panel=LEARNING)
    """FROM,TO: an episode with more than FROM sampled tokens is penalised, with TO or more by 1 (dapo)."""
    auto_adjust: bool = option(False, panel=LEARNING, played=True)
    """Adapt learning rate, KL weight, temperature, group size and the choice of scenarios to what is measured."""
    early_stopping: bool = option(False, panel=LEARNING, played=True)
    """End when for `patience` steps in a row the last `patience` steps were not better than those before them."""
    patience: int = option(8, panel=LEARNING, played=True, ge=2)
    """Steps of a plateau."""
    max_grad_norm: float = option(1.0, panel=LEARNING, gt=0)
    """Norm to which gradients are clipped."""
    shuffle_rewards: bool = option(False, panel=LEARNING, played=True)
    """A control: shuffle rewards within each group, so that there is nothing to learn."""
    credit: Credit = option("trajectory", panel=CREDIT)
    """What is compared within a group: whole episodes, their parts at each node, or at each turn."""
    nodes: tuple[str, ...] = option((), panel=CREDIT, flag="--node")
    """Train only this node of the graph, or this agent of the orchestrator; can be given several times. Default: all."""
    adapters: dict[str, tuple[str, ...]] = option({}, panel=CREDIT, flag="--adapter")
    """NAME=NODE,NODE: a separate adapter for these nodes; can be given several times. Default: one adapter for all."""
    limits: dict[str, float] = option({}, panel=CREDIT, flag="--limit")
    """NAME=SHARE, such as violations=0.02: at most this share of the episodes, enforced by a multiplier. NAME is violations,
    truncated, escalations or module:function."""
    limit_rate: float = option(5.0, panel=CREDIT, gt=0)
    """How much a multiplier rises in a step for each whole share above its limit."""
    full: bool = option(False, panel=MODEL)
    """Train all weights instead of an adapter."""
    rank: int = option(16, panel=MODEL, ge=1)
    """Rank of the LoRA."""
    lora_alpha: int | None = option(None, panel=MODEL, ge=1)
    """Alpha of the LoRA; default: 2 x rank."""
    lora_dropout: float = option(0.0, panel=MODEL, ge=0, lt=1)
    """Dropout of the LoRA."""
    precision: Precision = option("fp32", panel=MODEL)
    """Precision of the computation. Trained weights are always float32."""
    gradient_checkpointing: bool = option(False, panel=MODEL)
    """Compute activations twice instead of storing them; always done for a conversation longer than `tokens_per_batch`."""
    tokens_per_batch: int = option(6144, panel=MODEL, ge=16)
    """Distinct tokens in a batch."""
    episodes_per_batch: int = option(1024, panel=MODEL, ge=1)
    """The most episodes in a batch."""
    keep_every: int = option(0, panel=RUN, ge=0)
    """Keep the weights of every n-th step; 0: only the last ones."""
    seed: int = option(1, panel=RUN)
    """Seed of scenarios, sampling and LoRA."""

    @model_validator(mode="after")
    def _agrees(self) -> "TrainConfig":
        algorithm = ALGORITHMS[self.algorithm]
        for name in ("clip_low", "clip_high"):
            if getattr(self, name) is not None and getattr(algorithm, name) is None:
                raise ValueError(f"{name}: not used by {self.algorithm}")
        for name in ("resample", "overlong"):
            if getattr(self, name) and name not in algorithm.reads:
                readers = [other.name for other in ALGORITHMS.values() if name in other.reads]
                raise ValueError(
                    f"{name}: not used by {self.algorithm}, only by {', '.join(readers)}"
                )
        if self.overlong is not None and not 0 < self.overlong[0] < self.overlong[1]:
            raise ValueError(f"overlong: expected 0 < from < to, found {self.overlong}")
        if self.importance != "decoupled" and "importance_cap" in self.model_fields_set:
            raise ValueError("importance_cap: used only with --importance decoupled")
        if self.full:
            for name in ("rank", "lora_alpha", "lora_dropout", "adapters"):
                if getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise ValueError(f"{name}: there is no adapter where all weights are trained")
            if self.beta:
                raise ValueError(
                    "beta: expected 0 where all weights are trained, since the base model is not kept"
                )
        given = [node for nodes in self.adapters.values() for node in nodes]
        if len(given) != len(set(given)):
            raise ValueError(f"adapters: expected each node in one of them, found {sorted(given)}")
        if any(not nodes for nodes in self.adapters.values()):
            raise ValueError("adapters: expected at least one node for each")
        if self.adapters and self.nodes:
            raise ValueError("nodes: not used with --adapter, which names the nodes")
        if self.shuffle_rewards and self.credit != "trajectory":
            raise ValueError("shuffle_rewards: used only with --credit trajectory")
        if self.forks and self.credit != "trajectory":
            raise ValueError("forks: used only with --credit trajectory")
        if self.forks and self.shuffle_rewards:
            raise ValueError("shuffle_rewards: not used with --forks")
        if self.forks and self.forks > self.group_size - 2:
            raise ValueError(f"forks: expected two whole episodes of {self.group_size} at least")
        if "limit_rate" in self.model_fields_set and not self.limits:
            raise ValueError("limit_rate: used only with --limit")
        if "patience" in self.model_fields_set and not self.early_stopping:
            raise ValueError("patience: used only with --early-stopping")
        if self.kl_target is not None and not (self.auto_adjust and self.beta):
            raise ValueError("kl_target: used only with --auto-adjust and a beta above 0")
        for name, share in self.limits.items():
            if not 0 <= share < 1:
                raise ValueError(f"limits: expected a share from 0 to 1 for {name}, found {share}")
        return self

    @property
    def trained(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each adapter; empty: all nodes."""
        return dict(self.adapters) or {DEFAULT_ADAPTER: self.nodes}
