"""`rewards`: what a reward can be talked into, how far it can be trusted, what weights make of a policy."""

from pathlib import Path
from typing import Annotated

import typer

rewards = typer.Typer(no_args_is_help=True, help="Check, audit and calibrate rewards.")

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

    from stateset_agents.errors import BadInput
    from stateset_agents.jobs.registry import find_reward
    from stateset_agents.rewards.audit import audit

    found = asyncio.run(audit(find_reward(reward)))
    table = Table(
        "what is tried", "honest answer", "attack, at its best", "", title=f"what {reward} pays"
    )
    for one in found:
        told = "-" if one.best is None else f"{one.best:.3f}"
        honest = "-" if one.honest is None else f"{one.honest:.3f}"
        table.add_row(one.attack, honest, told, "[bold red]gamed" if one.gamed else "[green]held")
    Console().print(table)
    if all(one.best is None for one in found):
        raise BadInput(
            f"Expected scores from {reward}, found that it could not score any situation: nothing was audited."
        )
    gamed = sum(one.gamed for one in found)
    print(f"{gamed or 'none'} of {len(found)} attacks reached an honest answer")
    raise typer.Exit(2 if gamed else 0)


@rewards.command("check")
def rewards_check(reward: Named) -> None:
    """Whether a reward keeps the protocol and what it declares."""
    import asyncio

    from stateset_agents.jobs.registry import find_reward
    from stateset_agents.rewards.conformance import problems

    found = asyncio.run(problems(find_reward(reward)))
    for problem in found:
        print(problem)
    print(f"{reward}: {len(found) or 'no'} problem{'' if len(found) == 1 else 's'}")
    raise typer.Exit(2 if found else 0)


@rewards.command("grade")
def rewards_grade(
    reward: Named,
    store: Annotated[str, typer.Argument(help="A run's folder or a store.")],
    phase: str | None = None,
    write: Annotated[
        bool, typer.Option(help="Keep the scores in the store, in the place of those there.")
    ] = False,
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
        typer.Option(help="Another reward, or an earlier judge: how far they drifted apart."),
    ] = None,
    phase: str | None = None,
    limit: Annotated[int, typer.Option(help="Traces at the most.", min=1)] = 1000,
) -> None:
    """Compare a reward's scores with outcomes that the shop verified."""
    import asyncio
    import itertools

    from rich.console import Console
    from rich.table import Table

    from stateset_agents.cli.sources import open_store
    from stateset_agents.errors import BadInput
    from stateset_agents.jobs.registry import find_reward
    from stateset_agents.rewards.calibration import Calibration, calibrate, drift

    judged = find_reward(reward)
    with open_store(store) as opened:
        traces = list(itertools.islice(opened.traces(phase=phase), limit))

    def told(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    try:
        found: Calibration = asyncio.run(calibrate(judged, traces))
    except ValueError as error:
        raise BadInput(str(error)) from None
    table = Table(
        "", "", title=f"{reward} against {found.successes} successes in {found.traces} traces"
    )
    for name, value in (
        ("AUC", told(found.auc)), ("accuracy", f"{told(found.accuracy)} at {told(found.threshold)}"),
        ("the more frequent outcome alone", told(found.majority)), ("could not be scored", str(found.unscored)),
        ("bias by length", told(found.length_bias)), ("bias by position", told(found.position_bias)),
        ("score: successes", ", ".join(f"{score:.2f}: {share:.2f}" for score, share, _ in found.reliability)),
    ):  # fmt: skip
        table.add_row(name, value)
    report = getattr(getattr(judged, "reward", judged), "report", None)
    if report is not None:
        agreement = sum(report.agreement) / len(report.agreement) if report.agreement else None
        table.add_row("agreement of repeats", told(agreement))
        table.add_row(
            "answers refused", ", ".join(f"{n} {k}" for k, n in report.refused.items()) or "none"
        )
    if against is not None:
        same, gap = asyncio.run(drift(judged, find_reward(against), traces))
        table.add_row(f"correlation with {against}", told(same))
        table.add_row(f"mean difference to {against}", told(gap))
    Console().print(table)


@rewards.command("pareto")
def rewards_pareto(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `train`, one for each weighting.")],
    objective: Annotated[
        list[str], typer.Option(help="Two or more, such as csat and gross_margin.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("pareto.html"),
    phase: str = "after",
) -> None:
    """Compare policies that were trained with different weights, as a table and a plot."""
    import json

    from rich.console import Console
    from rich.table import Table

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
    for one in points:
        values = [f"{m:.3f} ± {r:.3f}" for m, r in zip(one.means, one.reaches, strict=True)]
        table.add_row(one.name, *values, "dominated" if one.dominated else "on the front")
    Console().print(table)
    write_pareto(points, objective, out)
    print(f"plot in {out}")


@rewards.command("train")
def rewards_train(
    out: Annotated[Path, typer.Argument(help="Folder for the reward model.")],
    store: Annotated[
        str | None,
        typer.Option(
            help="A run's folder or a store to take preferences from; without it they are generated."
        ),
    ] = None,
    feedback: Annotated[
        str | None,
        typer.Option(
            help="Prefer by feedback of this kind (csat, thumbs, …) instead of verified goals."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Preferences at the most.", min=50)] = 2000,
    model: Annotated[
        str, typer.Option(help="The base: seed, or a model of transformers.")
    ] = "seed",
    epochs: Annotated[float, typer.Option(min=0.1)] = 1.0,
    seed: int = 0,
) -> None:
    """Learn a reward from preferences; use it as `--reward neural:FOLDER`."""
    import asyncio

    from stateset_agents.cli.training import _quiet_libraries
    from stateset_agents.jobs import offline

    _quiet_libraries()
    found = asyncio.run(
        offline.reward_model_job(out, store=store, feedback=feedback, pairs=pairs, model=model, epochs=epochs, seed=seed,
                              report=lambda line: print(line, flush=True))
    )  # fmt: skip
    print(f"{found['accuracy']:.1%} of {found['held_out']} held-out pairs ranked right")
    print(f"use it: --reward neural:{out}")
