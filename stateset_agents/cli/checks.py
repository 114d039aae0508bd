"""Checks whether a command can run, before anything is written or started."""

from collections.abc import Callable, Sequence
from typing import Any

import typer

from stateset_agents.errors import BadInput
from stateset_agents.jobs.config import JobConfig


def check_ready(
    config: JobConfig, *, training: bool = False, measuring: bool = False, provider: bool = False, dry_run: bool = False,
    problems: Sequence[str] = (),
) -> None:  # fmt: skip
    """Raises BadInput with all that is missing, `problems` included. A dry run ends here, with what would be done."""
    missing = [
        *missing_for(config, training=training, measuring=measuring, provider=provider),
        *problems,
    ]
    if dry_run:
        print(config.model_dump_json(indent=2))
        print("nothing is missing" if not missing else "missing: " + "; ".join(missing))
        raise typer.Exit(2 if missing else 0)
    if missing:
        raise BadInput("; ".join(missing))


def fitted_to(values: dict[str, Any], *, training: bool) -> dict[str, Any]:
    """Settings that fit the model, for the fields that were not given; they are printed with their reasons."""
    from stateset_agents.jobs.fitting import fitting

    made = fitting(values, training=training)
    for reason in made.reasons:
        print(f"chosen: {reason}", flush=True)
    return made.values


def missing_for(
    config: JobConfig, *, training: bool = False, measuring: bool = False, provider: bool = False
) -> list[str]:
    """What a job is missing, each in a sentence: trackers, names, models, engines. `measuring`: it only measures."""
    from stateset_agents.jobs import registry
    from stateset_agents.jobs.scenario_sets import find_scenarios
    from stateset_agents.jobs.shops import shops_of
    from stateset_agents.jobs.warm_start import check_warm_start
    from stateset_agents.policy.weight_files import model_path
    from stateset_agents.server.launch import check_engine
    from stateset_agents.trainers.trackers import check_names

    checks: list[Callable[[], Any]] = [
        lambda: check_names(config.log),
        lambda: registry.find_rollout(config),
        lambda: _check_mcp(config),
        lambda: shops_of(config),
        lambda: registry.find_grading(config),
        lambda: _check_model(model_path(config.model), provider=provider),
        lambda: _check_template(config, provider=provider),
        lambda: check_warm_start(config),
    ]
    plays = config.from_traces is None
    if plays and (config.scenarios or not config.bundled):
        checks.append(lambda: find_scenarios(config, only_held_out=measuring))
    if plays and not provider:
        checks.append(lambda: check_engine(config, training=training))
    missing = []
    for check in checks:
        try:
            check()
        except BadInput as error:
            missing.append(str(error))
    return missing


def _check_mcp(config: JobConfig) -> None:
    """Start the MCP server once, list its tools and say which of them ask. Raises BadInput if that cannot be done."""
    if config.mcp is None:
        return
    import asyncio

    from stateset_agents.jobs.mcp_shop import domain_of, listed

    backend = asyncio.run(listed(config))
    domain_of(config, backend)
    reads = [name for name, offer in backend.offers.items() if not offer.writes]
    asks = [name for name, offer in backend.offers.items() if offer.writes]
    print(f"{len(backend.offers)} tools over MCP; they only read: {', '.join(reads) or 'none'};")
    print(f"  need the customer's confirmation: {', '.join(asks) or 'none'}")


def _check_model(path: str, *, provider: bool = False) -> None:
    from stateset_agents.policy.litellm import PREFIX, load_litellm

    if path.startswith(PREFIX):
        if not provider:
            raise BadInput(
                f"--model: {path!r} is a provider's model, without token ids: it can be evaluated but not trained."
            )
        load_litellm()
        return
    from stateset_agents.policy.weight_files import checked_config

    checked_config(path)


def _check_template(config: JobConfig, *, provider: bool) -> None:
    """Raises BadInput if a model's chat template cannot be given tools, or its calls cannot be read. Says where tools are told in
    words."""
    from stateset_agents.policy.rendering import renderer_of
    from stateset_agents.policy.weight_files import model_path

    if provider:
        return
    quiet_libraries()
    renderer = renderer_of(model_path(config.model))
    engine = config.engine or "embedded"
    if engine == "embedded" or config.warm_start or config.from_traces:
        _ = renderer.reader
    if renderer.in_words:
        print(
            f"the chat template of {config.model} leaves something out: tools are told in words (docs/models.md)"
        )


def quiet_libraries() -> None:
    """Silence progress bars and deprecation warnings of libraries, which would break our own progress display."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
