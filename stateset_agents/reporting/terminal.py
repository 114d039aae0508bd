"""What the terminal shows: progress while a run works, its result, and traces to read."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from stateset_agents.evaluation import Measurement, shown
from stateset_agents.trace import Trace
from stateset_agents.traces.store import TraceStore

PHASES = {
    "before": "measuring the policy as it is",
    "greedy_before": "measuring it greedily",
    "after": "measuring what was trained",
    "greedy_after": "measuring that greedily",
}


class TrainingView:
    """Called with each event of a job."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        self.task = self.progress.add_task("starting the policy engine", total=None, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def __call__(self, event: str, values: dict[str, Any]) -> None:
        match event:
            case "start":
                self.console.print(
                    f"[bold]{values['training']}[/] training and [bold]{values['held_out']}[/] "
                    f"held-out scenarios; results in {values['run']}"
                )
            case "engine":
                self.console.print(f"[dim]{values['told']}[/]")
            case "measure":
                self._next(PHASES[values["phase"]], values["episodes"])
            case "collect":
                self._next("playing episodes", values["episodes"])
            case "warm":
                self._next(f"imitating {values['traces']} traces", 1)
            case "tick":
                if self.task is not None:
                    self.progress.advance(self.task)
            case "measured":
                self.console.print(_measured(PHASES[values["phase"]], values["result"]))
            case "train":
                self._next("training", values["steps"])
            case "step":
                self._step(values)
            case "end" if self.task is not None:
                self.progress.remove_task(self.task)
                self.task = None

    def _next(self, name: str, total: int) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, note="")

    def _step(self, line: dict[str, Any]) -> None:
        assert self.task is not None
        speed = line["tokens_sampled"] / line["seconds_rollout"]
        reward = "-" if line["reward"] is None else f"{line['reward']:.2f}"
        note = f"reward {reward}  success {line['success']:.0%}  kl {line['kl']:.3f}  {speed:.0f} tok/s"
        self.progress.update(self.task, completed=line["step"], note=note)
        if not self.console.is_terminal:
            self.console.print(f"step {line['step']}: {note}  {line['seconds']:.1f} s")
        if line.get("alarm"):
            self.console.print(f"[bold red]step {line['step']}: {line['alarm']}[/]")

    def measurement(self, result: Measurement, run: Path) -> None:
        self.console.print(_measured("measured", result))
        for intent, share in result.success_by_intent.items():
            self.console.print(f"  {intent:<18} {share:.0%}")
        self.console.print(f"traces in {run / 'traces.db'}")

    def conclude(self, run: Path, summary: dict[str, Any]) -> None:
        """Before and after, two transcripts of one scenario, and where things are."""
        console = self.console
        table = Table(title="before and after, on held-out scenarios", title_justify="left")
        for column in ("", "before", "after"):
            table.add_column(column, justify="left" if not column else "right")
        name = summary["measured_by"]
        table.add_row(
            f"{name} (95 % interval)",
            f"{summary['success_before']:.3f} ({shown(summary['ci95_before'])})",
            f"{summary['success_after']:.3f} ({shown(summary['ci95_after'])})",
        )
        table.add_row(
            f"{name}, greedy", f"{summary['greedy_before']:.3f}", f"{summary['greedy_after']:.3f}"
        )
        if name == "success":
            for intent, pair in summary["success_by_intent"].items():
                table.add_row(f"  {intent}", f"{pair['before']:.2f}", f"{pair['after']:.2f}")
        rewards = [summary["mean_reward_before"], summary["mean_reward_after"]]
        table.add_row("mean reward", *("-" if r is None else f"{r:.3f}" for r in rewards))
        table.add_row(
            "episodes that broke a rule",
            str(summary["violations_before"]),
            str(summary["violations_after"]),
        )
        console.print(table)
        if summary["gain"] is not None:
            console.print(
                f"[bold]gain {summary['gain']:+.3f}[/] (paired 95 % interval "
                f"{shown(summary['gain_ci95'], '+.3f')}) in {summary['seconds_total'] / 60:.1f} minutes"
            )
        pair = telling_pair(run)
        if pair is not None:
            console.print(
                Columns(
                    [
                        Panel(
                            _transcript(trace), title=title, width=max(40, console.width // 2 - 1)
                        )
                        for title, trace in zip(("before", "after"), pair, strict=True)
                    ]
                )
            )
        console.print(
            f"report     {run / 'report.html'}\nsummary    {run / 'summary.json'}\n"
            f"adapter    {run / 'adapter'}\ntraces     stateset-agents traces list {run}\n"
            f"talk to it stateset-agents chat --policy {run}"
        )


def _measured(name: str, result: Measurement) -> str:
    kind = "greedy" if result.temperature == 0 else "sampled"
    reward = "-" if result.mean_reward is None else f"{result.mean_reward:.3f}"
    return (
        f"{name}: {result.measured_by} [bold]{result.success:.3f}[/] ({shown(result.ci95)}, {kind}), "
        f"reward {reward}, {result.turns:.1f} turns, {result.violations} broke a rule, "
        f"{result.failed} failed, {result.truncated} truncated"
    )


def telling_pair(run: Path) -> tuple[Trace, Trace] | None:
    """One scenario before and after: a failure that became a success where there is one."""
    with TraceStore(run / "traces.db", create=False) as store:
        after = {t.scenario.id: t for t in store.traces(phase="after") if t.scenario}
        pairs = [
            (trace, after[trace.scenario.id])
            for trace in store.traces(phase="before")
            if trace.scenario and trace.scenario.id in after
        ]

    def won(pair: tuple[Trace, Trace]) -> int:
        one, two = (trace.goal_score for trace in pair)
        if one is None or two is None:
            return 0
        return int(two.success) - int(one.success) + int(bool(pair[1].changes))

    return max(pairs, key=won, default=None)


def _transcript(trace: Trace) -> Text:
    """A conversation as people read it."""
    styles = {"user": "bold", "assistant": "", "tool": "dim"}
    names = {"user": "customer", "assistant": "agent", "tool": "tool"}
    text = Text()
    for message in trace.messages:
        role = message["role"]
        if role not in names:
            continue
        if message.get("content"):
            text.append(f"{names[role]:<8} {message['content']}\n", styles[role])
        for call in message.get("tool_calls") or []:
            function = call["function"]
            text.append(f"calls    {function['name']} {function['arguments']}\n", "cyan")
    goal = trace.goal_score
    if goal is not None:
        text.append("success" if goal.success else "no success", "green" if goal.success else "red")
    return text


def show_trace(trace: Trace) -> None:
    """One trace in full."""
    console = Console(highlight=False)
    about = trace.scenario.id if trace.scenario else "no scenario"
    console.print(f"[bold]{trace.id}[/] {about}, {trace.status}, {trace.exactness}")
    if trace.error:
        console.print(trace.error)
    console.print(_transcript(trace))
    for call in trace.model_calls:
        console.print(
            f"  {call.node} {call.version}: {len(call.prompt_ids)} prompt ids, "
            f"{len(call.sampled_ids)} sampled, {call.finish_reason}, {call.seconds * 1000:.0f} ms"
        )
    for change in trace.changes:
        console.print(f"  changed {change.table} {change.key} {change.column} = {change.value}")
    for rule in trace.violations:
        console.print(f"  [red]broke {rule}[/]")


def trace_table(rows: list[dict[str, object]], total: int) -> None:
    """Traces, one a line."""
    console = Console(highlight=False)
    table = Table(box=None)
    for column in (
        "trace",
        "phase",
        "step",
        "intent",
        "status",
        "ids",
        "version",
        "success",
        "reward",
    ):
        table.add_column(column)
    for row in rows:
        reward, success = row["reward"], row["success"]
        table.add_row(
            str(row["id"])[:12], str(row["phase"]), str(row["step"]), str(row["intent"] or ""),
            str(row["status"]), str(row["exactness"]), str(row["version"]),
            "-" if success is None else "yes" if success else "no",
            f"{reward:.2f}" if isinstance(reward, float) else "-",
        )  # fmt: skip
    console.print(table)
    console.print(f"{len(rows)} of {total}")
