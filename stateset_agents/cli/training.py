"""`demo`, `train` and `evaluate`: the commands that run episodes by the hundred."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

CUSTOMER = "NAME@URL of a model that plays the customer; rules without it."
ALGORITHMS = "dr_grpo, grpo (with the deviation), or rejection as a baseline."


def demo(
    seed: Annotated[int, typer.Option(help="Seed of scenarios, sampling and LoRA.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 32,
    held_out: Annotated[int, typer.Option(help="Held-out scenarios to measure on.")] = 120,
    held_out_seed: Annotated[int, typer.Option(help="Where held-out shops begin.")] = 90_000,
    algorithm: Annotated[str, typer.Option(help=ALGORITHMS)] = "dr_grpo",
    shuffle_rewards: Annotated[
        bool, typer.Option(help="Control: shuffle rewards within each group.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
) -> None:
    """Train the seed policy on the shop and show what it gained (10 minutes on two cores)."""
    _train(
        {"seed": seed, "steps": steps, "held_out": held_out, "held_out_seed": held_out_seed,
         "shuffle_rewards": shuffle_rewards, "algorithm": algorithm},
        out=out, resume=None, dry_run=False,
    )  # fmt: skip


def train(
    ctx: typer.Context,
    graph: Annotated[
        str, typer.Option(help="One of the shop's, such as 'service', or package.module:graph.")
    ] = "service",
    reward: Annotated[
        str | None,
        typer.Option(
            help="package.module:reward or feedback:KEY:LOW:HIGH; the shop's own by default."
        ),
    ] = None,
    scenarios: Annotated[str | None, typer.Option(help="JSON file of scenarios.")] = None,
    model: Annotated[str, typer.Option(help="'seed', a path, or a Hugging Face name.")] = "seed",
    base_url: Annotated[
        str | None, typer.Option(help="A running vLLM, as http://host:port/v1.")
    ] = None,
    customer: Annotated[str | None, typer.Option(help=CUSTOMER)] = None,
    from_traces: Annotated[
        str | None,
        typer.Option(help="Train on a store's exact traces alone: a file or postgresql://…"),
    ] = None,
    steps: int = 32,
    groups: Annotated[int, typer.Option(help="Scenarios a step.")] = 8,
    group_size: Annotated[int, typer.Option(help="Episodes a scenario.")] = 8,
    learning_rate: float = 1e-3,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 16,
    beta: Annotated[float, typer.Option(help="Weight of the KL to the base model.")] = 0.0,
    algorithm: Annotated[str, typer.Option(help=ALGORITHMS)] = "dr_grpo",
    temperature: float = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Tokens a model call may sample.")] = 96,
    concurrency: Annotated[int, typer.Option(help="Episodes at a time.")] = 64,
    held_out: int = 120,
    held_out_seed: int = 90_000,
    seed: int = 1,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the configuration and what is missing.")
    ] = False,
) -> None:
    """Improve a policy with GRPO on episodes of a graph."""
    if resume is not None:
        _nothing_else(ctx, "resume", "dry_run")
    if from_traces is not None:
        _from_traces(
            from_traces, out,
            {"reward": reward, "model": model, "steps": steps, "groups": groups, "learning_rate": learning_rate,
             "rank": rank, "beta": beta, "algorithm": algorithm, "seed": seed},
        )  # fmt: skip
        return
    _train(
        {"graph": graph, "reward": reward, "scenarios": scenarios, "model": model,
         "base_url": base_url, "customer": customer, "steps": steps, "groups": groups, "group_size": group_size,
         "learning_rate": learning_rate, "rank": rank, "beta": beta, "algorithm": algorithm, "temperature": temperature,
         "max_tokens": max_tokens, "concurrency": concurrency, "held_out": held_out,
         "held_out_seed": held_out_seed, "seed": seed},
        out=out, resume=resume, dry_run=dry_run,
    )  # fmt: skip


def _from_traces(source: str, out: Path | None, values: dict[str, Any]) -> None:
    """One pass over a store's traces."""
    from stateset_agents import jobs
    from stateset_agents.settings import load_settings

    settings = load_settings()
    config = jobs.check_config({"threads": settings.threads, **values})
    place = str(Path(source) / "traces.db") if Path(source).is_dir() else source
    _quiet_libraries()
    run = jobs.new_run(out or settings.runs)

    def told(line: dict[str, Any]) -> None:
        reward = "-" if line["reward"] is None else f"{line['reward']:.3f}"
        print(
            f"step {line['step']}: {line['episodes']} traces, reward {reward}, {line['tokens_trained']} tokens trained, "
            f"importance ratio {line['ratio']:.3f}",
            flush=True,
        )

    summary = asyncio.run(jobs.recorded_job(config, place, run, told))
    print(f"{summary['steps']} steps on {summary['exact']} exact traces of {summary['traces']}")
    print(f"adapter in {run / 'adapter'}; try it: stateset-agents chat --policy {run}")


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
    from stateset_agents import jobs
    from stateset_agents.errors import BadInput, PolicyUnreachable, RunBroken
    from stateset_agents.settings import load_settings

    settings = load_settings()
    values = {"threads": settings.threads, **values}
    values["base_url"] = values.get("base_url") or settings.base_url
    if resume is not None:
        stored = resume / "config.json"
        if not stored.is_file():
            raise BadInput(f"Expected a run with config.json at {str(resume)!r}, found none.")
        values = json.loads(stored.read_text())
    config = jobs.check_config(values)
    missing = _missing(config)
    _ready(config, missing, dry_run=dry_run)
    from stateset_agents.terminal import TrainingView

    _quiet_libraries()
    run = resume or jobs.new_run(out or settings.runs)
    try:
        with TrainingView() as view:
            summary = asyncio.run(jobs.train_job(config, run, view))
    except KeyboardInterrupt:
        print(f"interrupted; go on with: stateset-agents train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (PolicyUnreachable, RunBroken) as error:
        raise type(error)(f"{error} Go on with: stateset-agents train --resume {run}") from None
    from stateset_agents.report import write_report

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


def _missing(config: Any) -> list[str]:
    from stateset_agents import jobs
    from stateset_agents.errors import BadInput

    missing = []
    checks: list[Any] = [
        lambda: jobs.find_rollout(config.graph, config.customer),
        lambda: jobs.find_reward(config.reward),
        lambda: (
            jobs.find_scenarios(config)
            if config.scenarios or config.graph not in jobs.GRAPHS
            else 0
        ),
        lambda: _check_model(jobs.model_path(config.model)),
    ]
    for check in checks:
        try:
            check()
        except BadInput as error:
            missing.append(str(error))
    return missing


def _check_model(path: str) -> None:
    from transformers import AutoConfig

    from stateset_agents.errors import BadInput

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
    reward: str | None = None,
    scenarios: str | None = None,
    model: str = "seed",
    base_url: str | None = None,
    customer: Annotated[str | None, typer.Option(help=CUSTOMER)] = None,
    held_out: int = 120,
    held_out_seed: int = 90_000,
    temperature: float = 1.0,
    seed: int = 1,
    out: Annotated[Path | None, typer.Option(help="Where runs are written.")] = None,
    dry_run: bool = False,
) -> None:
    """Measure a policy on held-out scenarios."""
    from stateset_agents import jobs
    from stateset_agents.errors import BadInput
    from stateset_agents.settings import load_settings

    settings = load_settings()
    config = jobs.check_config(
        {"graph": graph, "reward": reward, "scenarios": scenarios, "model": model,
         "base_url": base_url or settings.base_url, "customer": customer, "held_out": held_out,
         "held_out_seed": held_out_seed, "seed": seed, "steps": 1}
    )  # fmt: skip
    missing = _missing(config)
    adapter = None
    try:
        adapter = jobs.find_adapter(policy) if policy else None
    except BadInput as error:
        missing.append(str(error))
    _ready(config, missing, dry_run=dry_run)
    run = jobs.new_run(out or settings.runs)
    from stateset_agents.terminal import TrainingView

    with TrainingView() as view:
        result = asyncio.run(jobs.evaluate_job(config, run, adapter, temperature, view))
    view.measurement(result, run)
