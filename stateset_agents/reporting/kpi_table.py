"""KPIs as a table in the terminal: amounts as they are, and proxies marked as such."""

from typing import Any

from rich.console import Console
from rich.table import Table

from stateset_agents.errors import BadInput
from stateset_agents.reporting.kpi import Kpi, Tally
from stateset_agents.rewards.objectives import OBJECTIVES, Objective

LATEST = ("after", "evaluate")
"""What is shown of a run by default: how its policy did at the end, greedily or not, never mixed with the episodes before."""


def one_phase(store: Any) -> str | None:
    """The phase to show where none was asked for; None if the store has only one. Raises BadInput if it cannot be told."""
    known = store.phases()
    if len(known) < 2:
        return None
    chosen = next((phase for phase in LATEST if phase in known), None)
    if chosen is None:
        raise BadInput(
            f"--phase: expected one of {', '.join(repr(name) for name in known)}: their traces are of different policies."
        )
    others = ", ".join(name or "recorded" for name in known if name != chosen)
    print(f"phase {chosen}; others with --phase: {others}")
    return chosen


def kpi_table(tally: Tally, *, title: str) -> None:
    """Print an objective a row, a group a column; two groups with their difference."""
    groups = tally.groups
    table = Table("", *(f"{group} ({tally.count(group)})" for group in groups), title=title)
    both = len(groups) == 2
    if both:
        table.add_column(f"{groups[1]} - {groups[0]}")
    proxies = False
    for name in tally.names:
        row, objective = [tally.kpi(group, name) for group in groups], OBJECTIVES[name]
        if all(kpi.mean is None for kpi in row):
            continue
        proxies |= any(kpi.guessed for kpi in row)
        cells = [_cell(kpi, objective) for kpi in row]
        gap = tally.difference(name, *groups) if both else None
        if both:
            cells.append("-" if gap is None else _number(*gap, objective))
        unit = objective.unit + (", less is better" if objective.counts else "")
        table.add_row(f"{name}\n[dim]{unit}", *cells)
    console = Console()
    console.print(table)
    if proxies:
        console.print(
            "~ a proxy: nobody was asked, so it is told from what was done and answered. Feedback: `traces feedback`.",
            style="dim", highlight=False,
        )  # fmt: skip


def _cell(kpi: Kpi, objective: Objective) -> str:
    if kpi.mean is None:
        return "-"
    mark = "~" if kpi.guessed else ""
    return mark + _number(kpi.mean, kpi.ci95, objective)


def _number(mean: float, ci95: tuple[float, float] | None, objective: Objective) -> str:
    if objective.counts:
        mean, ci95 = -mean, None if ci95 is None else (-ci95[1], -ci95[0])
    digits = 3 if abs(mean) < 10 else 0
    text = f"{_plus_zero(mean):.{digits}f}"
    if ci95 is not None:
        text += f"\n[dim]{_plus_zero(ci95[0]):.{digits}f} to {_plus_zero(ci95[1]):.{digits}f}"
    return text


def _plus_zero(value: float) -> float:
    return value + 0.0
