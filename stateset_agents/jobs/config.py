"""A job's config: how a policy is trained, and what is trained or measured on what."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from stateset_agents.errors import BadInput
from stateset_agents.graphs.names import DOMAIN_GRAPHS, GRAPHS
from stateset_agents.traces.dataset import Method
from stateset_agents.trainers.config import (
    CREDIT,
    EPISODES,
    LEARNING,
    MODEL,
    RUN,
    STORE,
    TrainConfig,
    option,
)

HELD_OUT_SEED = 90_000
MCP = "A shop over MCP"
MCP_ONLY = ("tools", "read", "write", "inject", "prompt")
"""Fields that are used only with `mcp`."""
STARTED = ("engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser")
"""Fields of an engine that is started; not used with servers that run already."""
STORE_ONLY = ("epochs", "least_ess", "method")
"""Fields that are used only when training from a store."""


class JobConfig(TrainConfig):
    """A job's settings. They are written to `config.json` beside its results."""

    graph: str = option("service", panel=EPISODES, played=True)
    """One of the shop's graphs, such as 'service', or package.module:graph."""
    world: str | None = option(None, panel=EPISODES, played=True)
    """module:function of a scenario, for a graph of your own: makes what an episode acts on, with a `clone` method."""
    reward: str | None = option(None, panel=EPISODES)
    """A reward by name, objectives:NAME=WEIGHT,…, gdpo:NAME=WEIGHT,…, judge:MODEL@URL, judge-relative:MODEL@URL,
    neural:FOLDER, feedback:KEY:LOW:HIGH, or package.module:reward; default: the shop's."""
    scenarios: str | None = option(None, panel=EPISODES, played=True)
    """File of scenarios, JSON or JSON lines; default: generated."""
    rules: str | None = option(None, panel=EPISODES, played=True)
    """YAML file of rules: they replace the shop's own of the same id, and are added to the others."""
    database: str | None = option(None, panel=EPISODES, played=True)
    """postgresql://… of a shop that `shop create` made: episodes are played on copies of it as it is when the job starts."""
    database_schema: str = option("shop", panel=EPISODES, flag="--schema", played=True)
    """The shop's schema in that database."""
    mcp: str | None = option(None, panel=MCP, played=True)
    """URL or command line of an MCP server: the graph's agent acts on its tools instead of the bundled shop's."""
    tools: tuple[str, ...] = option((), panel=MCP, played=True)
    """Pattern of the server's tools that are offered, such as get_*; default: all; can be given several times."""
    read: tuple[str, ...] = option((), panel=MCP, played=True)
    """Pattern of tools that only read, though the server does not say so; can be given several times."""
    write: tuple[str, ...] = option((), panel=MCP, played=True)
    """Pattern of tools that need the customer's confirmation, whatever the server says; can be given several times."""
    inject: dict[str, Literal["key", "customer", "call"]] = option({}, panel=MCP, played=True)
    """ARGUMENT=key, customer or call: filled in with a write's idempotency key, the signed-in customer or the call's id, and
    hidden from the model; can be given several times."""
    prompt: str | None = option(None, panel=MCP, played=True)
    """File with the agent's prompt; default: made of its duty."""
    customer: str | None = option(None, panel=EPISODES, played=True)
    """NAME@URL of a model that plays the customer; default: rules."""
    held_out: int = option(120, panel=EPISODES, played=True, ge=1)
    """Held-out scenarios to measure on."""
    held_out_seed: int = option(HELD_OUT_SEED, panel=EPISODES, played=True)
    """Seed of the held-out scenarios."""
    eval_every: int = option(0, panel=EPISODES, played=True, ge=0)
    """Also evaluate on them every n steps; 0: before and after training only."""
    from_traces: str | None = option(None, panel=STORE)
    """Train on the traces of a store instead of episodes: a run's folder, a file or postgresql://…"""
    method: Method = option("auto", panel=STORE)
    """How a store is learned from: by rewards (rl), by imitating its best traces (sft), or by preferring better to worse ones
    (dpo)."""
    warm_start: str | None = option(None, panel=LEARNING, played=True)
    """Imitate before the first episode: 'oracle', or the best traces of a store."""
    warm_traces: int = option(256, panel=LEARNING, played=True, ge=8)
    """Traces to imitate (warm start)."""
    node_rewards: dict[str, str] = option({}, panel=CREDIT, flag="--node-reward")
    """NODE=REWARD: what calls at this node are worth (credit node); can be given several times."""
    model: str = option("seed", panel=MODEL)
    """'seed', the bundled toy of 3.4 million parameters, which knows the bundled shop alone; a folder; or a Hugging Face name."""
    base_url: str | None = option(None, panel=MODEL, played=True)
    """Policy servers that run already, as http://host:port/v1, with commas between several; default: an engine is started."""
    engine: Literal["embedded", "vllm", "auto"] | None = option(None, panel=MODEL, played=True)
    """The engine to start; auto: vLLM where it is installed. Default: the setting STATESET_ENGINE."""
    replicas: int = option(1, panel=MODEL, played=True, ge=1)
    """Number of replicas of the engine."""
    gpu_memory_utilization: float | None = option(None, panel=MODEL, played=True, gt=0, le=1)
    """Share of each GPU's memory (vLLM); default: vLLM's."""
    max_model_len: int | None = option(None, panel=MODEL, played=True, ge=16)
    """Tokens of a conversation at most; default: the model's on vLLM, 2,048 with the embedded engine."""
    tool_parser: str | None = option(None, panel=MODEL, played=True)
    """Tool-call parser (vLLM); default: inferred from the chat template."""
    threads: int = option(2, panel=RUN, ge=1)
    """torch threads while training; default: the setting STATESET_THREADS."""
    log: tuple[str, ...] = option(("tensorboard",), panel=RUN)
    """Tracker beside the JSON lines: tensorboard, wandb, mlflow, trackio or none; can be given several times."""

    @property
    def bundled(self) -> bool:
        """Whether its episodes are played by the shop's own graphs in the bundled shop."""
        return self.graph in GRAPHS and self.mcp is None

    @model_validator(mode="after")
    def _fields_agree(self) -> "JobConfig":
        if self.node_rewards and self.credit != "node":
            raise ValueError("node_rewards: used only with --credit node")
        if self.full and self.base_url:
            raise ValueError(
                "full: servers of --base-url can swap adapters but not whole models; leave --base-url out"
            )
        if self.base_url and (wrong := sorted(self.model_fields_set.intersection(STARTED))):
            raise ValueError(f"{wrong[0]}: not used with --base-url, whose servers run already")
        if self.node_rewards and self.nodes and not set(self.node_rewards) <= set(self.nodes):
            raise ValueError(
                f"node_rewards: expected nodes that train, found {sorted(self.node_rewards)}"
            )
        if self.mcp is None and (wrong := sorted(self.model_fields_set.intersection(MCP_ONLY))):
            raise ValueError(f"{wrong[0]}: used only with a shop over MCP (--mcp)")
        if self.mcp is not None and self.graph not in DOMAIN_GRAPHS:
            raise ValueError(
                f"mcp: used with one agent of {', '.join(DOMAIN_GRAPHS)}; another graph connects itself"
            )
        if self.database is None and "database_schema" in self.model_fields_set:
            raise ValueError("database_schema: used only with a shop in a database (--database)")
        if self.database is not None and not self.bundled:
            raise ValueError(
                "database: for the shop's own graphs; a graph of your own connects itself"
            )
        if self.world and self.graph in GRAPHS:
            raise ValueError("world: not used with the shop's own graphs, which make their own")
        if self.rules and self.graph not in GRAPHS:
            raise ValueError(
                "rules: for the shop's own graphs; give those of your own tools to build_graph(rules=…)"
            )
        if "warm_traces" in self.model_fields_set and self.warm_start is None:
            raise ValueError("warm_traces: used only with --warm-start")
        if self.from_traces is not None:
            if wrong := sorted(self.model_fields_set.intersection(played_fields())):
                raise ValueError(
                    f"{wrong[0]}: not used when training from a store, where no episode is played"
                )
        elif wrong := sorted(self.model_fields_set.intersection(STORE_ONLY)):
            raise ValueError(f"{wrong[0]}: used only when training from a store (--from-traces)")
        return self


def extra_of(name: str) -> dict[str, Any]:
    """The marks of a field: panel, flag, and whether it is about playing episodes."""
    extra = JobConfig.model_fields[name].json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def flag_of(name: str) -> str:
    """The command-line option of a field; for any other name, `--name`."""
    flag = extra_of(name).get("flag") if name in JobConfig.model_fields else None
    return str(flag or f"--{name.replace('_', '-')}")


def played_fields() -> set[str]:
    """Fields about playing and measuring episodes."""
    return {name for name in JobConfig.model_fields if extra_of(name)["played"]}


def check_config(values: dict[str, Any]) -> JobConfig:
    """A config from options. Raises BadInput with the option, its value and the allowed values."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of how settings go together
            name, _, problem = first["msg"].removeprefix("Value error, ").partition(": ")
            raise BadInput(f"{flag_of(name)}: {problem}.") from None
        option = flag_of(str(first["loc"][0]))
        raise BadInput(f"{option}: {first['msg']}, found {first['input']!r}.") from None


def load_config(run: Path) -> JobConfig:
    """The config of a run. Fields equal to their default count as unset."""
    stored = run / "config.json"
    if not stored.is_file():
        raise BadInput(f"Expected a run with config.json at {str(run)!r}, found none.")
    defaults = JobConfig().model_dump(mode="json")
    values = json.loads(stored.read_text())
    return check_config({k: v for k, v in values.items() if v != defaults.get(k, ...)})
