"""`rewards`: check, audit, calibrate and train rewards, and compare policies."""

from pathlib import Path
from typing import Annotated

import typer

from stateset_agents.cli.help import CommandLine

rewards = CommandLine(help="Check, audit and calibrate rewards.")

Named = Annotated[
    str,
    typer.Argument(
        help="shop, seed, helpfulness, safety, …, objectives:csat=1, judge:MODEL@URL, or module:object.", metavar="REWARD"
    ),
]  # fmt: skip


@rewards.command("audit")
def rewards_audit(reward: Named) -> None:
    """Offer a reward word salad, self-praise, leaks and lies, and show what it pays for them."""
    import asyncio

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stateset_agents.errors import BadInput
    from stateset_agents.jobs.registry import find_reward
    from stateset_agents.rewards.audit import audit

    audits = asyncio.run(audit(find_reward(reward)))
    title = Text(f"what {reward} pays", style="italic")
    table = Table("what is tried", "honest answer", "attack, at its best", "", title=title)
    for result in audits:
        table.add_row(
            Text(result.attack),
            "-" if result.honest is None else f"{result.honest:.3f}",
            "-" if result.best is None else f"{result.best:.3f}",
            Text("gamed", style="bold red") if result.gamed else Text("resisted", style="green"),
        )
    Console().print(table)
    if all(result.best is None for result in audits):
        raise BadInput(
            f"Expected scores from {reward}, found that it could not score any situation: nothing was audited."
        )
    gamed = sum(result.gamed for result in audits)
    print(f"{gamed or 'none'} of {len(audits)} attacks reached an honest answer")
    raise typer.Exit(2 if gamed else 0)


@rewards.command("check")
def rewards_check(reward: Named) -> None:
    """Check that a reward follows the protocol and its own declaration."""
    import asyncio

    from stateset_agents.jobs.registry import find_reward
    from stateset_agents.rewards.conformance import problems

    broken = asyncio.run(problems(find_reward(reward)))
    for problem in broken:
        print(problem)
    print(f"{reward}: {len(broken) or 'no'} problem{'' if len(broken) == 1 else 's'}")
    raise typer.Exit(2 if broken else 0)


@rewards.command("grade")
def rewards_grade(
    reward: Named,
    store: Annotated[str, typer.Argument(help="A run's folder or a store.")],
    phase: Annotated[str | None, typer.Option(help="Only traces of this phase.")] = None,
    write: Annotated[bool, typer.Option(help="Replace the scores in the store.")] = False,
) -> None:
    """Score stored traces again, in groups as they were played."""
    import asyncio
    import itertools
    import math

    from stateset_agents.cli.sources import open_store
    from stateset_agents.jobs.registry import find_reward

    judged = find_reward(reward)
    values: list[float] = []
    count = 0
    with open_store(store) as opened:
        every = opened.traces(phase=phase)
        for _, same in itertools.groupby(
            every, key=lambda t: t.scenario.id if t.scenario else t.id
        ):
            group = list(same)
            scores = asyncio.run(judged(group))
            count += len(group)
            values += [score.value for score in scores if score is not None]
            for trace, score in zip(group, scores, strict=True):
                if write:
                    opened.grade(trace.id, score)
        opened.flush()
    mean = f"{math.fsum(values) / len(values):.3f}" if values else "-"
    print(f"{count} traces, {len(values)} scored, mean {mean}")


@rewards.command("calibrate")
def rewards_calibrate(
    reward: Named,
    store: Annotated[
        str, typer.Argument(help="A run's folder or a store whose traces have goals.")
    ],
    against: Annotated[
        str | None,
        typer.Option(help="Another reward, or an earlier judge: how far they differ."),
    ] = None,
    phase: Annotated[str | None, typer.Option(help="Only traces of this phase.")] = None,
    limit: Annotated[int, typer.Option(help="Number of traces, at most.", min=1)] = 1000,
) -> None:
    """Compare a reward's scores with outcomes that the shop verified."""
    import asyncio
    import itertools

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stateset_agents.cli.sources import open_store
    from stateset_agents.errors import BadInput
    from stateset_agents.jobs.registry import find_reward
    from stateset_agents.rewards.calibration import Calibration, calibrate, drift

    judged = find_reward(reward)
    with open_store(store) as opened:
        traces = list(itertools.islice(opened.traces(phase=phase), limit))

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    try:
        result: Calibration = asyncio.run(calibrate(judged, traces))
    except ValueError as error:
        raise BadInput(str(error)) from None
    table = Table(
        "",
        "",
        title=Text(
            f"{reward} against {result.successes} successes in {result.traces} traces",
            style="italic",
        ),
    )
    for name, value in (
        ("AUC", shown(result.auc)), ("accuracy", f"{shown(result.accuracy)} at {shown(result.threshold)}"),
        ("the more frequent outcome alone", shown(result.majority)), ("could not be scored", str(result.unscored)),
        ("bias by length", shown(result.length_bias)), ("bias by position", shown(result.position_bias)),
        ("score: successes", ", ".join(f"{score:.2f}: {share:.2f}" for score, share, _ in result.reliability)),
    ):  # fmt: skip
        table.add_row(name, value)
    report = getattr(getattr(judged, "reward", judged), "report", None)
    if report is not None:
        agreement = sum(report.agreement) / len(report.agreement) if report.agreement else None
        table.add_row("agreement of repeats", shown(agreement))
        table.add_row(
            "answers refused", ", ".join(f"{n} {k}" for k, n in report.refused.items()) or "none"
        )
    if against is not None:
        same, gap = asyncio.run(drift(judged, find_reward(against), traces))
        table.add_row(f"correlation with {against}", shown(same))
        table.add_row(f"mean difference to {against}", shown(gap))
    Console().print(table)


@rewards.command("pareto")
def rewards_pareto(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `train`, one for each weighting.")],
    objective: Annotated[
        list[str], typer.Option(help="Two or more, such as csat and gross_margin.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("pareto.html"),
    phase: Annotated[str, typer.Option(help="Only traces of this phase.")] = "after",
) -> None:
    """Compare policies that were trained with different weights, as a table and a plot."""
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stateset_agents.cli.sources import open_store
    from stateset_agents.errors import BadInput
    from stateset_agents.reporting.html import write_pareto
    from stateset_agents.reporting.kpi import front, point
    from stateset_agents.rewards.objectives import OBJECTIVES

    unknown = sorted(set(objective) - OBJECTIVES.keys())
    if unknown or len(objective) < 2:
        raise BadInput(
            f"--objective: expected two or more of {', '.join(OBJECTIVES)}, found {unknown[0] if unknown else len(objective)}."
        )
    points = []
    for run in runs:
        file = run / "config.json"
        name = json.loads(file.read_text()).get("reward") if file.is_file() else None
        with open_store(str(run)) as store:
            try:
                points.append(point(str(name or run.name), store.traces(phase=phase), objective))
            except ValueError as error:
                raise BadInput(str(error)) from None
    points = front(points)
    table = Table("policy", *objective, "", title=f"{len(points)} policies, {phase}")
    for policy in points:
        values = [f"{m:.3f} ± {r:.3f}" for m, r in zip(policy.means, policy.reaches, strict=True)]
        verdict = "dominated" if policy.dominated else "on the front"
        table.add_row(Text(policy.name), *values, verdict)
    Console().print(table)
    write_pareto(points, objective, out)
    print(f"plot in {out}")


@rewards.command("train")
def rewards_train(
    out: Annotated[Path, typer.Argument(help="Folder for the reward model.")],
    store: Annotated[
        str | None,
        typer.Option(
            help="A run's folder or a store to take preferences from; default: they are generated."
        ),
    ] = None,
    feedback: Annotated[
        str | None,
        typer.Option(
            help="Prefer by feedback of this kind (csat, thumbs, …) instead of verified goals."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Number of preferences, at most.", min=50)] = 2000,
    model: Annotated[
        str, typer.Option(help="The base: seed, or a model of transformers.")
    ] = "seed",
    epochs: Annotated[float, typer.Option(help="Passes over the preferences.", min=0.1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
) -> None:
    """Learn a reward from preferences; use it as `--reward neural:FOLDER`."""
    import asyncio

    from stateset_agents.cli.checks import quiet_libraries
    from stateset_agents.jobs.reward_model import RewardModelConfig, reward_model_job

    quiet_libraries()
    config = RewardModelConfig(
        store=store, feedback=feedback, pairs=pairs, model=model, epochs=epochs, seed=seed
    )
    result = asyncio.run(reward_model_job(config, out, report=lambda line: print(line, flush=True)))
    print(f"{result['accuracy']:.1%} of {result['held_out']} held-out pairs ranked right")
    print(f"use it: --reward neural:{out}")
