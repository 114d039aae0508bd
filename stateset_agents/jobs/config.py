"""What a job is told: a run's settings, and what is trained or measured on what."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from stateset_agents.errors import BadInput
from stateset_agents.graphs import orchestrator
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.traces.dataset import Method
from stateset_agents.trainers.config import TrainConfig

GRAPHS = (*DOMAINS, orchestrator.NAME)
"""The shop's own graphs."""
HELD_OUT_SEED = 90_000
"""Where held-out shops begin, unless a caller says otherwise."""


class JobConfig(TrainConfig):
    """A training run: its settings, and what is trained on what. Written to `config.json` beside its results."""

    graph: str = "service"
    world: str | None = None
    """`module:function` of a scenario: what an episode of a graph of one's own acts on, with a `clone` method."""
    reward: str | None = None
    node_rewards: dict[str, str] = Field(default_factory=dict)
    """Rewards of their own for calls at these nodes; `credit: node` reads them."""
    scenarios: str | None = None
    """A file; without it scenarios are generated."""
    model: str = "seed"
    base_url: str | None = None
    """Policy servers that run already, with commas between them; without it an engine is started."""
    engine: Literal["embedded", "vllm", "auto"] | None = None
    """Which; the settings' without it."""
    replicas: int = Field(default=1, ge=1)
    """How many of it."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    max_model_len: int | None = Field(default=None, ge=16)
    tool_parser: str | None = None
    """What reads tool calls out of answers: vLLM's name for it; the model's chat template tells, without it."""
    customer: str | None = None
    """NAME@URL of a model that plays the customer, in the place of rules."""
    from_traces: str | None = None
    """A store whose traces are trained on, in the place of episodes."""
    method: Method = "auto"
    """How a store is learned from: by rewards (`rl`), by imitating its best (`sft`), or by preferring better to worse (`dpo`)."""
    warm_start: str | None = None
    """What is imitated before the first episode: `oracle`, or a store's best traces."""
    warm_traces: int = Field(default=256, ge=8)
    """How many traces; `warm_start` reads it."""
    held_out: int = Field(default=120, ge=1)
    held_out_seed: int = HELD_OUT_SEED
    eval_every: int = Field(default=0, ge=0)
    """Measure on the held-out scenarios after every so-manieth step as well; 0: before and after alone."""
    threads: int = Field(default=2, ge=1)
    log: tuple[str, ...] = ("tensorboard",)
    """Trackers by name, beside the JSON lines that are always written."""

    @model_validator(mode="after")
    def _read(self) -> "JobConfig":
        if self.node_rewards and self.credit != "node":
            raise ValueError("node_rewards: credit 'node' alone reads them")
        if self.full and self.base_url:
            raise ValueError(
                "full: a server of one's own can swap adapters, and not whole models; leave base_url out"
            )
        started = {"engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser"}
        if self.base_url and (wrong := sorted(self.model_fields_set & started)):
            raise ValueError(
                f"{wrong[0]}: base_url names servers that run already, which do not read it"
            )
        if self.node_rewards and self.nodes and not set(self.node_rewards) <= set(self.nodes):
            raise ValueError(
                f"node_rewards: expected nodes that train, found {sorted(self.node_rewards)}"
            )
        if self.world and self.graph in GRAPHS:
            raise ValueError("world: the shop's own graphs have theirs")
        if "warm_traces" in self.model_fields_set and self.warm_start is None:
            raise ValueError("warm_traces: warm_start alone reads it")
        if self.from_traces is not None:
            wrong = sorted(self.model_fields_set & PLAYED)
            if wrong:
                raise ValueError(
                    f"{wrong[0]}: training from a store does not read it, since nothing is played"
                )
            return self
        wrong = sorted(self.model_fields_set & {"epochs", "least_ess", "method"})
        if wrong:
            raise ValueError(f"{wrong[0]}: training from a store (from_traces) alone reads it")
        return self


PLAYED = {
    "graph", "world", "scenarios", "base_url", "engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser", "customer", "held_out", "held_out_seed", "eval_every", "group_size", "forks", "temperature",
    "max_tokens", "concurrency", "staleness", "resample", "auto_adjust", "early_stopping", "patience", "kl_target", "shuffle_rewards",
    "warm_start", "warm_traces",
}  # fmt: skip
"""What is said of how episodes are played and measured."""


def check_config(values: dict[str, Any]) -> JobConfig:
    """A config from options. Raises BadInput that names the option, what it was and what it may be."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of how settings go together
            name, _, told = first["msg"].removeprefix("Value error, ").partition(": ")
            raise BadInput(f"--{name.replace('_', '-')}: {told}.") from None
        name = str(first["loc"][0]).replace("_", "-")
        raise BadInput(f"--{name}: {first['msg']}, found {first['input']!r}.") from None


def load_config(run: Path) -> JobConfig:
    """The config of a run. What is as it would be unsaid was not said."""
    stored = run / "config.json"
    if not stored.is_file():
        raise BadInput(f"Expected a run with config.json at {str(run)!r}, found none.")
    plain = JobConfig().model_dump(mode="json")
    values = json.loads(stored.read_text())
    return check_config({k: v for k, v in values.items() if v != plain.get(k, ...)})
