"""The command line. Every command imports what it needs when it runs, so that `version` is instant."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stateset_agents import __version__
from stateset_agents.errors import StatesetError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Commerce agents as LangGraph graphs, trained on what really happened in the shop.",
)
policy_app = typer.Typer(no_args_is_help=True, help="Build and serve policies.")
traces_app = typer.Typer(no_args_is_help=True, help="Look into a run's traces.")
scenarios_app = typer.Typer(no_args_is_help=True, help="Make and check scenarios.")
app.add_typer(policy_app, name="policy")
app.add_typer(traces_app, name="traces")
app.add_typer(scenarios_app, name="scenarios")
rules_app = typer.Typer(no_args_is_help=True, help="The rules that the executor enforces.")
app.add_typer(rules_app, name="rules")

ALGORITHMS = "dr_grpo, grpo (with the deviation), or rejection as a baseline."
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, such as runs/20261123-101500.")]


def main() -> None:
    """Entry point: an error that we raise on purpose is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except StatesetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        sys.exit(130)


@app.command()
def version() -> None:
    """Versions, device and engines found."""
    from importlib import metadata, util

    def found(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    cuda = "CUDA" if Path("/proc/driver/nvidia/version").exists() else "CPU"
    engines = ["embedded"] if util.find_spec("torch") and util.find_spec("fastapi") else []
    engines += ["vllm"] if util.find_spec("vllm") else []
    rows = {
        "stateset-agents": __version__,
        "python": sys.version.split()[0],
        "torch": f"{found('torch')} ({cuda})",
        **{name: found(name) for name in ("transformers", "trl", "peft", "langgraph")},
        "engines": ", ".join(engines) or "none (install the extras trl and api)",
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")


def _go(job: Any) -> Any:
    return asyncio.run(job)


@app.command()
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


@app.command()
def train(
    ctx: typer.Context,
    graph: Annotated[str, typer.Option(help="'service', or package.module:graph.")] = "service",
    reward: Annotated[
        str | None, typer.Option(help="package.module:reward; the shop's own by default.")
    ] = None,
    scenarios: Annotated[str | None, typer.Option(help="JSON file of scenarios.")] = None,
    model: Annotated[str, typer.Option(help="'seed', a path, or a Hugging Face name.")] = "seed",
    base_url: Annotated[
        str | None, typer.Option(help="A running vLLM, as http://host:port/v1.")
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
    _train(
        {"graph": graph, "reward": reward, "scenarios": scenarios, "model": model,
         "base_url": base_url, "steps": steps, "groups": groups, "group_size": group_size,
         "learning_rate": learning_rate, "rank": rank, "beta": beta, "algorithm": algorithm, "temperature": temperature,
         "max_tokens": max_tokens, "concurrency": concurrency, "held_out": held_out,
         "held_out_seed": held_out_seed, "seed": seed},
        out=out, resume=resume, dry_run=dry_run,
    )  # fmt: skip


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
    if dry_run:
        print(config.model_dump_json(indent=2))
        print("nothing is missing" if not missing else "missing: " + "; ".join(missing))
        raise typer.Exit(2 if missing else 0)
    if missing:
        raise BadInput("; ".join(missing))
    from stateset_agents.terminal import TrainingView

    _quiet_libraries()
    run = resume or jobs.new_run(out or settings.runs)
    try:
        with TrainingView() as view:
            summary = _go(jobs.train_job(config, run, view))
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


def _missing(config: Any) -> list[str]:
    from stateset_agents import jobs
    from stateset_agents.errors import BadInput

    missing = []
    checks: list[Any] = [
        lambda: jobs.find_rollout(config.graph),
        lambda: jobs.find_reward(config.reward),
        lambda: jobs.find_scenarios(config) if config.scenarios or config.graph != "service" else 0,
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


@app.command()
def evaluate(
    policy: Annotated[Path | None, typer.Option(help="A run's folder or an adapter.")] = None,
    graph: str = "service",
    reward: str | None = None,
    scenarios: str | None = None,
    model: str = "seed",
    base_url: str | None = None,
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
         "base_url": base_url or settings.base_url, "held_out": held_out,
         "held_out_seed": held_out_seed, "seed": seed, "steps": 1}
    )  # fmt: skip
    missing = _missing(config)
    adapter = None
    try:
        adapter = jobs.find_adapter(policy) if policy else None
    except BadInput as error:
        missing.append(str(error))
    if dry_run:
        print(config.model_dump_json(indent=2))
        print("nothing is missing" if not missing else "missing: " + "; ".join(missing))
        raise typer.Exit(2 if missing else 0)
    if missing:
        raise BadInput("; ".join(missing))
    run = jobs.new_run(out or settings.runs)
    from stateset_agents.terminal import TrainingView

    with TrainingView() as view:
        result = _go(jobs.evaluate_job(config, run, adapter, temperature, view))
    view.measurement(result, run)


@app.command()
def chat(
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder; the seed without it.")
    ] = None,
    model: str = "seed",
    base_url: str | None = None,
    seed: Annotated[int, typer.Option(help="Which generated customer you play.")] = 1,
    temperature: float = 0.0,
) -> None:
    """Talk to a policy as a customer of the shop, and see the tool calls as they happen."""
    from stateset_agents import jobs
    from stateset_agents.chat import chat_loop

    adapter = jobs.find_adapter(policy) if policy else None
    config = jobs.check_config({"model": model, "base_url": base_url})
    _go(chat_loop(config, adapter, seed=seed, temperature=temperature))


@app.command()
def serve(
    graph: Annotated[str, typer.Option(help="Which graph answers; 'service' so far.")] = "service",
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder; the seed without it.")
    ] = None,
    model: str = "seed",
    base_url: str | None = None,
    shop_seed: Annotated[int, typer.Option(help="Which generated shop is served.")] = 1,
    rules: Annotated[
        Path | None, typer.Option(help="YAML file of rules; the shop's own without it.")
    ] = None,
    guard: Annotated[
        bool, typer.Option(help="Hold back replies that state what no tool said.")
    ] = True,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Answer OpenAI's chat protocol with a graph and its policy."""
    from stateset_agents import jobs
    from stateset_agents.serving import serve_graph
    from stateset_agents.settings import load_settings

    adapter = jobs.find_adapter(policy) if policy else None
    settings = load_settings()
    config = jobs.check_config(
        {"graph": graph, "model": model, "base_url": base_url or settings.base_url}
    )
    key = settings.api_key.get_secret_value() if settings.api_key else None
    _go(
        serve_graph(
            config, adapter, shop_seed=shop_seed, host=host, port=port, key=key,
            rules=_rules(rules), guard=guard,
        )
    )  # fmt: skip


def _rules(file: Path | None) -> Any:
    if file is None:
        return None
    from stateset_agents.tools.rules import parse_rules
    from stateset_agents.tools.toolset import ALL_TOOLS

    names = [tool.name for tool in ALL_TOOLS]
    return parse_rules(file.read_text(encoding="utf-8"), where=str(file), tools=names)


@policy_app.command("build")
def policy_build(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    steps: Annotated[int, typer.Option(help="Steps on transcripts.")] = 1700,
    seed: int = 0,
) -> None:
    """Raise the seed policy from nothing (about half an hour on two cores)."""
    from stateset_agents.seed_job import build_seed

    build_seed(out, steps=steps, seed=seed)


@policy_app.command("serve")
def policy_serve(
    model: str = "seed",
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder, served as its last version.")
    ] = None,
    host: str = "127.0.0.1",
    port: int = 8001,
    threads: int = 1,
) -> None:
    """Serve a policy with the embedded engine, as vLLM would."""
    import subprocess

    from stateset_agents import jobs
    from stateset_agents.server.engine.process import port_is_free

    port_is_free(host, port)
    command = [
        sys.executable, "-m", "stateset_agents.server.engine", "--model", jobs.model_path(model),
        "--host", host, "--port", str(port), "--threads", str(threads),
    ]  # fmt: skip
    if policy is not None:
        command += ["--adapter", f"policy-trained={jobs.find_adapter(policy)}"]
    print(f"policy at http://{host}:{port}/v1 (stop with Ctrl-C)", flush=True)
    raise typer.Exit(subprocess.call(command))


@traces_app.command("list")
def traces_list(run: RunFolder, phase: str | None = None, limit: int = 20) -> None:
    """The newest traces of a run."""
    from stateset_agents.terminal import trace_table

    with _store(run) as store:
        trace_table(store.list(phase=phase, limit=limit), store.count(phase))


@traces_app.command("show")
def traces_show(run: RunFolder, trace: str) -> None:
    """One conversation with its tool calls, tokens and outcome."""
    from stateset_agents.terminal import show_trace

    with _store(run) as store:
        show_trace(store.get(trace))


@traces_app.command("export")
def traces_export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="A .jsonl file.")],
    phase: str | None = None,
) -> None:
    """All traces as JSON lines."""
    count = 0
    with _store(run) as store, out.open("w", encoding="utf-8") as file:
        for trace in store.traces(phase=phase):
            file.write(trace.model_dump_json() + "\n")
            count += 1
    print(f"{count} traces in {out}")


def _store(run: Path) -> Any:
    from stateset_agents.store import TraceStore

    return TraceStore(run / "traces.db" if run.is_dir() else run, create=False)


@scenarios_app.command("generate")
def scenarios_generate(
    out: Annotated[Path, typer.Option(help="File to write, JSON lines.")],
    seed: int = 1,
    count: int = 100,
    split: Annotated[
        Literal["train", "development", "held_out"],
        typer.Option(help="Whose names, items and phrasings."),
    ] = "train",
    intent: Annotated[list[str] | None, typer.Option(help="Only these intents.")] = None,
) -> None:
    """Write solvable scenarios with their goals and plans."""
    import itertools

    from stateset_agents.errors import BadInput
    from stateset_agents.tools.scenarios import INTENTS, scenarios

    intents = tuple(intent) if intent else INTENTS
    unknown = sorted(set(intents) - set(INTENTS))
    if unknown:
        raise BadInput(f"--intent: expected one of {', '.join(INTENTS)}, found {unknown[0]!r}.")
    if count < 1:
        raise BadInput(f"--count: expected at least 1, found {count}.")
    made = scenarios(seed=seed, split=split, intents=intents)
    with out.open("w", encoding="utf-8") as file:
        for scenario in itertools.islice(made, count):
            file.write(scenario.model_dump_json() + "\n")
    print(f"{count} scenarios in {out}")


@scenarios_app.command("check")
def scenarios_check(file: Path) -> None:
    """Whether a file's scenarios are valid, and solvable where they have a plan."""
    from stateset_agents.scenario import load_scenarios
    from stateset_agents.tools.scenarios import mutants, score_acts

    every = load_scenarios(file)
    planned = [s for s in every if s.plan and s.goal is not None and s.split != "user"]
    unsolved = [s.id for s in planned if not score_acts(s, s.plan).success]
    leaky = [
        s.id for s in planned if any(score_acts(s, acts).success for acts in mutants(s).values())
    ]
    print(f"{len(every)} scenarios, {len(planned)} with a plan")
    for name, found in (("not solved by their plan", unsolved), ("solved by a mutant", leaky)):
        if found:
            print(f"{len(found)} {name}: {', '.join(found[:5])}")
    raise typer.Exit(2 if unsolved or leaky else 0)


@app.command()
def mcp(
    shop_seed: Annotated[int, typer.Option(help="Which generated shop is offered.")] = 1,
    rules: Annotated[
        Path | None, typer.Option(help="YAML file of rules; the shop's own without it.")
    ] = None,
    customer: Annotated[str, typer.Option(help="Id of the customer who has signed in.")] = "",
) -> None:
    """Offer the shop's tools to an MCP client over standard input and output."""
    from stateset_agents.errors import BadInput
    from stateset_agents.tools.executor import Executor
    from stateset_agents.tools.shop import generate
    from stateset_agents.tools.toolset import ALL_TOOLS

    try:
        from stateset_agents.tools.mcp_server import serve_stdio
    except ImportError:
        raise BadInput("Expected the package mcp, found none: install the extra 'mcp'.") from None
    executor = Executor(generate(shop_seed, "train").clone(), ALL_TOOLS, _rules(rules))
    _go(serve_stdio(executor, customer=customer))


@rules_app.command("check")
def rules_check(file: Path) -> None:
    """Whether a YAML file of rules can be used; each problem with its line."""
    from stateset_agents.tools.rules import problems
    from stateset_agents.tools.toolset import ALL_TOOLS

    found = problems(file.read_text(encoding="utf-8"), tools=[tool.name for tool in ALL_TOOLS])
    for line, reason in found:
        print(f"{file}:{line}: {reason}")
    if not found:
        print(f"{file}: no problems")
    raise typer.Exit(2 if found else 0)


@rules_app.command("show")
def rules_show(
    file: Annotated[Path | None, typer.Argument(help="The shop's own rules without it.")] = None,
) -> None:
    """What an agent is told of the rules, and what would make each of them bite."""
    from stateset_agents.tools.complications import NOT_DELIVERED, near_misses
    from stateset_agents.tools.rules import shop_rules

    for rule in _rules(file) or shop_rules():
        print(f"{rule.id} (version {rule.version}): {rule.told}")
        for situation in near_misses(rule):
            told = [f"{k} is {v!r}" for k, v in situation.items() if v != NOT_DELIVERED]
            print("    denied when " + " and ".join(told))


if __name__ == "__main__":
    main()
