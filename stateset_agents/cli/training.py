"""`demo`, `train` and `evaluate`: the commands that run episodes by the hundred."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

RUNNING = "Servers that run already, as http://host:port/v1, with commas between several."
ENGINE = "embedded, vllm, or auto: vLLM where it is installed."
CUSTOMER = "NAME@URL of a model that plays the customer; rules without it."
ALGORITHMS = (
    "grpo, dr_grpo, dapo, gspo, cispo, rloo, or rejection as a baseline (docs/training.md)."
)
EPISODES, LEARNING, CREDIT, MODEL = "Episodes", "Learning", "Credit and limits", "Model"


def demo(
    seed: Annotated[int, typer.Option(help="Seed of scenarios, sampling and LoRA.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 32,
    held_out: Annotated[int, typer.Option(help="Held-out scenarios to measure on.")] = 120,
    held_out_seed: Annotated[int, typer.Option(help="Where held-out shops begin.")] = 90_000,
    algorithm: Annotated[str, typer.Option(help=ALGORITHMS)] = "dr_grpo",
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    shuffle_rewards: Annotated[
        bool, typer.Option(help="Control: shuffle rewards within each group.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
) -> None:
    """Train the seed policy on the shop and show what it gained (10 minutes on two cores)."""
    _train(
        {"seed": seed, "steps": steps, "held_out": held_out, "held_out_seed": held_out_seed,
         "shuffle_rewards": shuffle_rewards, "algorithm": algorithm, **({"engine": engine} if engine else {})},
        out=out, resume=None, dry_run=False,
    )  # fmt: skip


def train(
    ctx: typer.Context,
    graph: Annotated[
        str, typer.Option(help="One of the shop's, such as 'service', or package.module:graph.", rich_help_panel=EPISODES)
    ] = "service",
    world: Annotated[
        str | None,
        typer.Option(help="module:function that makes what an episode of your graph acts on.", rich_help_panel=EPISODES),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="A name, package.module:reward or feedback:KEY:LOW:HIGH; the shop's own by default.", rich_help_panel=EPISODES),
    ] = None,
    scenarios: Annotated[str | None, typer.Option(help="JSON file of scenarios.", rich_help_panel=EPISODES)] = None,
    customer: Annotated[str | None, typer.Option(help=CUSTOMER, rich_help_panel=EPISODES)] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.", rich_help_panel=EPISODES)] = 32,
    groups: Annotated[int, typer.Option(help="Scenarios a step.", rich_help_panel=EPISODES)] = 8,
    group_size: Annotated[int, typer.Option(help="Episodes a scenario.", rich_help_panel=EPISODES)] = 8,
    forks: Annotated[
        int, typer.Option(help="How many of them go on from a decision of another one.", rich_help_panel=EPISODES)
    ] = 0,
    temperature: Annotated[float, typer.Option(rich_help_panel=EPISODES)] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Tokens a model call may sample.", rich_help_panel=EPISODES)] = 96,
    concurrency: Annotated[int, typer.Option(help="Episodes at a time; 0 finds it by measuring.", rich_help_panel=EPISODES)] = 64,
    staleness: Annotated[
        int, typer.Option(help="Steps by which the sampling policy may be older; above 0, playing and training overlap.", rich_help_panel=EPISODES)
    ] = 0,
    resample: Annotated[
        int, typer.Option(help="How often groups that agree are replaced (dapo).", rich_help_panel=EPISODES)
    ] = 0,
    held_out: Annotated[int, typer.Option(help="Held-out scenarios to measure on.", rich_help_panel=EPISODES)] = 120,
    held_out_seed: Annotated[int, typer.Option(rich_help_panel=EPISODES)] = 90_000,
    eval_every: Annotated[int, typer.Option(help="Measure on them after every so-manieth step too.", rich_help_panel=EPISODES)] = 0,
    from_traces: Annotated[
        str | None,
        typer.Option(help="Train on a store's traces alone: a run, a file or postgresql://…", rich_help_panel="A store"),
    ] = None,
    method: Annotated[str, typer.Option(help="auto, rl, sft or dpo.", rich_help_panel="A store")] = "auto",
    epochs: Annotated[int, typer.Option(help="Passes over the store.", rich_help_panel="A store")] = 1,
    least_ess: Annotated[
        float, typer.Option(help="Share of the trajectories' weight that has to count; below it the run ends.", rich_help_panel="A store")
    ] = 0.3,
    algorithm: Annotated[str, typer.Option(help=ALGORITHMS, rich_help_panel=LEARNING)] = "dr_grpo",
    profile: Annotated[
        str | None, typer.Option(help="conservative, balanced or aggressive: sets learning rate and beta.", rich_help_panel=LEARNING)
    ] = None,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=LEARNING)] = 1e-3,
    beta: Annotated[float, typer.Option(help="Weight of the KL to the base model.", rich_help_panel=LEARNING)] = 0.0,
    kl_target: Annotated[float | None, typer.Option(help="What auto-adjust steers beta to.", rich_help_panel=LEARNING)] = None,
    clip_low: Annotated[float | None, typer.Option(help="As the paper has it, without it.", rich_help_panel=LEARNING)] = None,
    clip_high: Annotated[float | None, typer.Option(rich_help_panel=LEARNING)] = None,
    importance: Annotated[str, typer.Option(help="recorded, decoupled, or tapered for stores.", rich_help_panel=LEARNING)] = "recorded",
    importance_cap: Annotated[float, typer.Option(help="Where a weight is truncated.", rich_help_panel=LEARNING)] = 2.0,
    overlong: Annotated[
        str | None, typer.Option(help="FROM,TO sampled tokens of an episode that cost 0 and 1 (dapo).", rich_help_panel=LEARNING)
    ] = None,
    auto_adjust: Annotated[bool, typer.Option(help="Settings follow what is measured.", rich_help_panel=LEARNING)] = False,
    early_stopping: Annotated[bool, typer.Option(help="End on a plateau.", rich_help_panel=LEARNING)] = False,
    patience: Annotated[int, typer.Option(help="Steps of a plateau.", rich_help_panel=LEARNING)] = 8,
    max_grad_norm: Annotated[float, typer.Option(rich_help_panel=LEARNING)] = 1.0,
    warm_start: Annotated[
        str | None, typer.Option(help="Imitate first: 'oracle', or a store's best traces.", rich_help_panel=LEARNING)
    ] = None,
    warm_traces: Annotated[int, typer.Option(rich_help_panel=LEARNING)] = 256,
    credit: Annotated[str, typer.Option(help="trajectory, node or turn.", rich_help_panel=CREDIT)] = "trajectory",
    node: Annotated[list[str] | None, typer.Option(help="Train this node (or agent) alone.", rich_help_panel=CREDIT)] = None,
    node_reward: Annotated[
        list[str] | None, typer.Option(help="NODE=REWARD: what its calls are worth.", rich_help_panel=CREDIT)
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=NODE,NODE: an adapter of these nodes' own.", rich_help_panel=CREDIT)
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="violations=0.02: a share of episodes, held by a multiplier.", rich_help_panel=CREDIT),
    ] = None,
    limit_rate: Annotated[float, typer.Option(help="How fast a multiplier moves.", rich_help_panel=CREDIT)] = 5.0,
    model: Annotated[str, typer.Option(help="'seed', a path, or a Hugging Face name.", rich_help_panel=MODEL)] = "seed",
    base_url: Annotated[
        str | None, typer.Option(help=RUNNING, rich_help_panel=MODEL)
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE, rich_help_panel=MODEL)] = None,
    replicas: Annotated[int, typer.Option(help="How many of it, side by side.", rich_help_panel=MODEL)] = 1,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="vLLM's.", rich_help_panel=MODEL)] = None,
    max_model_len: Annotated[int | None, typer.Option(help="vLLM's.", rich_help_panel=MODEL)] = None,
    tool_parser: Annotated[str | None, typer.Option(help="vLLM's reader of tool calls; the chat template tells, without it.", rich_help_panel=MODEL)] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights and no adapter.", rich_help_panel=MODEL)] = False,
    rank: Annotated[int, typer.Option(help="LoRA rank.", rich_help_panel=MODEL)] = 16,
    lora_alpha: Annotated[int | None, typer.Option(help="Twice the rank, without it.", rich_help_panel=MODEL)] = None,
    lora_dropout: Annotated[float, typer.Option(rich_help_panel=MODEL)] = 0.0,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16, to compute in.", rich_help_panel=MODEL)] = "fp32",
    keep_every: Annotated[int, typer.Option(help="Keep every so-manieth step's weights for good.", rich_help_panel=MODEL)] = 0,
    gradient_checkpointing: Annotated[bool, typer.Option(rich_help_panel=MODEL)] = False,
    tokens_per_batch: Annotated[int, typer.Option(help="Distinct tokens at once.", rich_help_panel=MODEL)] = 6144,
    episodes_per_batch: Annotated[int, typer.Option(help="Episodes at once, where they fit.", rich_help_panel=MODEL)] = 1024,
    log: Annotated[list[str] | None, typer.Option(help="tensorboard (default), wandb, mlflow, trackio, none.")] = None,
    seed: int = 1,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the configuration and what is missing.")
    ] = False,
) -> None:  # fmt: skip
    """Improve a policy with GRPO on episodes of a graph, or on a store's traces."""
    if resume is not None:
        _nothing_else(ctx, "resume", "dry_run")
    _train(asked(ctx), out=out, resume=resume, dry_run=dry_run)


PAIRS = {"node_reward": "node_rewards", "adapter": "adapters", "limit": "limits"}


def asked(ctx: typer.Context) -> dict[str, Any]:
    """What was said on the command line, as a config's values: what was not keeps its default, and no mode refuses it."""
    from stateset_agents.errors import BadInput
    from stateset_agents.trainers.config import PROFILES

    given = {
        name: value
        for name, value in ctx.params.items()
        if value not in (None, []) and str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")
    }
    values: dict[str, Any] = {}
    profile = given.pop("profile", None)
    if profile is not None:
        if profile not in PROFILES:
            raise BadInput(f"--profile: expected one of {', '.join(PROFILES)}, found {profile!r}.")
        values |= PROFILES[profile]
    for name, value in given.items():
        option = name.replace("_", "-")
        if name in ("out", "resume", "dry_run"):
            continue
        if name in PAIRS:
            pairs = dict(_pair(one, option, last=name == "limit") for one in value)
            values[PAIRS[name]] = (
                {key: tuple(told.split(",")) for key, told in pairs.items()}
                if name == "adapter"
                else pairs
            )
        elif name == "node":
            values["nodes"] = tuple(value)
        elif name == "log":
            values["log"] = tuple(one for one in value if one != "none")
        elif name == "overlong":
            values["overlong"] = tuple(value.split(","))
        elif name in ("from_traces", "warm_start"):
            values[name] = str(Path(value) / "traces.db") if Path(value).is_dir() else value
        else:
            values[name] = value
    return values


def _pair(told: str, option: str, *, last: bool) -> tuple[str, str]:
    """NAME=VALUE, parted at the first `=`, or at the last one: a reward may have some, and so may a function's name."""
    from stateset_agents.errors import BadInput

    name, between, value = told.rpartition("=") if last else told.partition("=")
    if not (name and between and value):
        raise BadInput(f"--{option}: expected NAME=VALUE, found {told!r}.")
    return name, value


def _from_traces(config: Any, run: Path) -> None:
    """Train on a store's traces, with a line a step."""
    from stateset_agents.jobs import offline

    def told(line: dict[str, Any]) -> None:
        if "method" in line:
            print(f"{line['method']} step {line['step']}: loss {line['loss']:.4f}", flush=True)
            return
        reward = "-" if line["reward"] is None else f"{line['reward']:.3f}"
        print(
            f"step {line['step']}: {line['episodes']} traces, reward {reward}, {line['tokens_trained']} tokens trained, "
            f"importance ratio {line['ratio']:.3f}, effective sample size {line['ess']:.0%}",
            flush=True,
        )

    summary = asyncio.run(offline.recorded_job(config, run, told))
    print(f"{summary['method']}: {summary['why']}")
    print(
        f"{summary['steps']} steps on {summary['traces']} traces, {summary['exact']} of them exact"
    )
    if summary.get("ended"):
        print(f"ended {summary['ended']}")
    print(f"adapter in {run / 'adapter'}; try it: stateset-agents chat --policy {run}")


def collect(
    ctx: typer.Context,
    graph: Annotated[str, typer.Option(help="One of the shop's, or package.module:graph.")] = "service",
    world: Annotated[str | None, typer.Option(help="As for train.")] = None,
    reward: Annotated[str | None, typer.Option(help="As for train; scores are kept beside the traces.")] = None,
    scenarios: Annotated[str | None, typer.Option(help="JSON file of scenarios.")] = None,
    customer: Annotated[str | None, typer.Option(help=CUSTOMER)] = None,
    policy: Annotated[Path | None, typer.Option(help="A run's folder or an adapter.")] = None,
    model: Annotated[str, typer.Option(help="'seed', a path, or a Hugging Face name.")] = "seed",
    base_url: Annotated[str | None, typer.Option(help=RUNNING)] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    replicas: Annotated[int, typer.Option(help="How many of it, side by side.")] = 1,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="vLLM's.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="vLLM's.")] = None,
    tool_parser: Annotated[str | None, typer.Option(help="vLLM's reader of tool calls; the chat template tells, without it.")] = None,
    steps: Annotated[int, typer.Option(help="Rounds.")] = 32,
    groups: Annotated[int, typer.Option(help="Scenarios a round.")] = 8,
    group_size: Annotated[int, typer.Option(help="Episodes a scenario.")] = 8,
    forks: Annotated[int, typer.Option(help="How many of them go on from a decision of another one.")] = 0,
    temperature: float = 1.0,
    max_tokens: int = 96,
    concurrency: int = 64,
    seed: int = 1,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
) -> None:  # fmt: skip
    """Play training scenarios with a policy as it is and keep the episodes, for `train --from-traces`."""
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import offline, policy_server
    from stateset_agents.jobs import train as jobs
    from stateset_agents.reporting.terminal import TrainingView
    from stateset_agents.settings import load_settings

    settings = load_settings()
    values = asked(ctx)
    values.pop("policy", None)
    values |= policy_server.where(values.pop("base_url", None), values.get("engine"))
    config = job_config.check_config({"threads": settings.threads, **values})
    adapter = policy_server.find_adapter(policy) if policy else None
    _ready(config, _missing(config), dry_run=False)
    _quiet_libraries()
    run = jobs.new_run(out or settings.runs)
    with TrainingView() as view:
        summary = asyncio.run(offline.collect_job(config, run, adapter, view))
    print(
        f"{summary['episodes']} episodes, success {summary['success']:.0%}, {summary['tokens_sampled']:,} tokens sampled\n"
        f"learn from them: stateset-agents train --from-traces {run}"
    )


def _nothing_else(ctx: typer.Context, *allowed: str) -> None:
    """A run that is resumed keeps the settings it began with; other options would be ignored."""
    from stateset_agents.errors import BadInput

    given = [
        name
        for name in ctx.params
        if name not in allowed and str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        raise BadInput(
            f"--{given[0].replace('_', '-')}: expected no other option beside --resume, which goes on "
            "with the settings in the run's config.json."
        )


def _train(values: dict[str, Any], *, out: Path | None, resume: Path | None, dry_run: bool) -> None:
    from stateset_agents.errors import PolicyUnreachable, RunBroken
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import policy_server
    from stateset_agents.jobs import train as jobs
    from stateset_agents.settings import load_settings

    settings = load_settings()
    if resume is not None:
        config = job_config.load_config(resume)
    else:
        values = {"threads": settings.threads, **values}
        if settings.base_url and "from_traces" not in values:
            values |= policy_server.where(values.pop("base_url", None), values.get("engine"))
        config = job_config.check_config(values)
    missing = _missing(config, training=True)
    _ready(config, missing, dry_run=dry_run)
    from stateset_agents.reporting.terminal import TrainingView

    _quiet_libraries()
    run = resume or jobs.new_run(out or settings.runs)
    try:
        if config.from_traces is not None:
            _from_traces(config, run)
            return
        with TrainingView() as view:
            summary = asyncio.run(jobs.train_job(config, run, view))
    except KeyboardInterrupt:
        print(f"interrupted; go on with: stateset-agents train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (PolicyUnreachable, RunBroken) as error:
        raise type(error)(f"{error} Go on with: stateset-agents train --resume {run}") from None
    from stateset_agents.reporting.html import write_report

    write_report(run)
    view.conclude(run, summary)


def _quiet_libraries() -> None:
    """Progress bars and deprecations of the libraries below would tear our own progress apart."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _ready(config: Any, missing: list[str], *, dry_run: bool) -> None:
    """Go on where nothing is missing; a dry run ends here, having said what would be done."""
    from stateset_agents.errors import BadInput

    if dry_run:
        print(config.model_dump_json(indent=2))
        print("nothing is missing" if not missing else "missing: " + "; ".join(missing))
        raise typer.Exit(2 if missing else 0)
    if missing:
        raise BadInput("; ".join(missing))


def _missing(config: Any, *, training: bool = False, provider: bool = False) -> list[str]:
    from stateset_agents.errors import BadInput
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import policy_server, registry
    from stateset_agents.jobs import train as jobs
    from stateset_agents.trainers.trackers import check_names

    missing = []
    checks: list[Any] = [
        lambda: check_names(config.log),
        lambda: registry.find_rollout(config.graph, config.customer, config.world),
        lambda: registry.find_reward(config.reward),
        lambda: registry.find_node_rewards(config),
        lambda: registry.find_limits(config),
        lambda: (
            registry.find_scenarios(config)
            if config.from_traces is None
            and (config.scenarios or config.graph not in job_config.GRAPHS)
            else 0
        ),
        lambda: _check_model(policy_server.model_path(config.model), provider=provider),
        lambda: jobs.check_warm_start(config),
        lambda: (
            policy_server.check(config, training=training)
            if config.from_traces is None and not provider
            else 0
        ),
    ]
    for check in checks:
        try:
            check()
        except BadInput as error:
            missing.append(str(error))
    return missing


def _check_model(path: str, *, provider: bool = False) -> None:
    from stateset_agents.errors import BadInput
    from stateset_agents.policy.litellm import PREFIX, load_litellm

    if path.startswith(PREFIX):
        if not provider:
            raise BadInput(
                f"--model: {path!r} is a provider's, which says nothing of its tokens: it can be evaluated, and not trained."
            )
        load_litellm()
        return
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--model: expected 'seed', a folder or a Hugging Face name, found {path!r}: "
            f"{str(error).splitlines()[0]}"
        ) from None


def evaluate(
    policy: Annotated[Path | None, typer.Option(help="A run's folder or an adapter.")] = None,
    graph: str = "service",
    world: Annotated[str | None, typer.Option(help="As for train.")] = None,
    reward: str | None = None,
    scenarios: str | None = None,
    model: Annotated[
        str,
        typer.Option(
            help="'seed', a path, a Hugging Face name, or litellm:PROVIDER/MODEL as a baseline."
        ),
    ] = "seed",
    base_url: Annotated[str | None, typer.Option(help=RUNNING)] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    customer: Annotated[str | None, typer.Option(help=CUSTOMER)] = None,
    held_out: int = 120,
    held_out_seed: int = 90_000,
    temperature: float = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Tokens a model call may sample.")] = 96,
    seed: int = 1,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
    dry_run: bool = False,
) -> None:
    """Measure a policy on held-out scenarios."""
    from stateset_agents.errors import BadInput
    from stateset_agents.jobs import config as job_config
    from stateset_agents.jobs import policy_server
    from stateset_agents.jobs import train as jobs
    from stateset_agents.settings import load_settings

    settings = load_settings()
    provider = model.startswith("litellm:")
    if provider and (policy or engine):
        raise BadInput(
            f"--{'policy' if policy else 'engine'}: a provider's model (--model {model}) has none of ours."
        )
    # A provider's key goes to the provider, or to who is named here, and to no server that the settings name.
    asked_of = (
        ({"base_url": base_url} if base_url else {})
        if provider
        else policy_server.where(base_url, engine)
    )
    config = job_config.check_config(
        {"graph": graph, "reward": reward, "scenarios": scenarios, "model": model,
         **asked_of, "customer": customer, "held_out": held_out,
         "held_out_seed": held_out_seed, "seed": seed, "steps": 1, "max_tokens": max_tokens, "world": world}
    )  # fmt: skip
    missing = _missing(config, provider=provider)
    adapter = None
    try:
        adapter = policy_server.find_adapter(policy) if policy else None
    except BadInput as error:
        missing.append(str(error))
    _ready(config, missing, dry_run=dry_run)
    run = jobs.new_run(out or settings.runs)
    from stateset_agents.reporting.terminal import TrainingView

    with TrainingView() as view:
        result = asyncio.run(jobs.evaluate_job(config, run, adapter, temperature, view))
    view.measurement(result, run)
