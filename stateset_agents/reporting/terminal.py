"""The terminal: progress of a run, its result, and traces."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
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
from stateset_agents.graphs.names import GRAPHS
from stateset_agents.reporting.events import (
    CollectionStarted,
    EpisodeEnded,
    Event,
    JobEnded,
    JobStarted,
    MeasurementEnded,
    MeasurementStarted,
    ServerSaid,
    StepEnded,
    TrainingStarted,
    WarmStarted,
)
from stateset_agents.reporting.pairs import best_pair
from stateset_agents.reporting.transcript import lines_of
from stateset_agents.trace import Trace
from stateset_agents.trainers.imitation_log import ImitationLog
from stateset_agents.trainers.step_log import StepLog

PHASES = {
    "before": "measuring the policy as it is",
    "greedy_before": "measuring it greedily",
    "after": "measuring what was trained",
    "greedy_after": "measuring that greedily",
    "evaluate": "measuring the policy",
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
            TimeRemainingColumn(),
            TextColumn("left"),
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

    def __call__(self, event: Event) -> None:
        match event:
            case JobStarted(training, held_out, run):
                self.console.print(
                    f"[bold]{training}[/] training and [bold]{held_out}[/] held-out scenarios; results in",
                    Text(str(run)),
                )
            case ServerSaid(message):
                self.console.print(Text(message, style="dim"))
            case MeasurementStarted(phase, episodes):
                self._next(PHASES[phase], episodes)
            case CollectionStarted(episodes):
                self._next("playing episodes", episodes)
            case WarmStarted(traces):
                self._next(f"imitating {traces} traces", 1)
            case EpisodeEnded() if self.task is not None:
                self.progress.advance(self.task)
            case MeasurementEnded(phase, result):
                self.console.print(_measured(PHASES[phase], result))
            case TrainingStarted(steps):
                self._next("training", steps)
            case StepEnded(log):
                self._step(log)
            case JobEnded() if self.task is not None:
                self.progress.remove_task(self.task)
                self.task = None

    def _next(self, name: str, total: int) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, note="")

    def _step(self, log: StepLog) -> None:
        assert self.task is not None
        speed = log.tokens_sampled / log.seconds_rollout
        reward = "-" if log.reward is None else f"{log.reward:.2f}"
        success = "" if log.success is None else f"success {log.success:.0%}  "
        note = f"reward {reward}  {success}kl {log.kl:.3f}  {speed:.0f} tok/s"
        self.progress.update(self.task, completed=log.step, note=note)
        if not self.console.is_terminal:
            self.console.print(f"step {log.step}: {note}  {log.seconds or 0.0:.1f} s")
        if log.constrained and log.step == 1:
            note = f"step 1: {log.constrained} calls are not trained on: their tokens were forced, as by tool_choice"
            self.console.print(Text(note, style="bold"))
        if log.alarm:
            self.console.print(Text(f"step {log.step}: {log.alarm}", style="bold red"))

    def measurement(self, result: Measurement, run: Path) -> None:
        self.console.print(_measured("measured", result))
        for intent, share in result.success_by_intent.items():
            self.console.print(f"  {intent:<18} {share:.0%}")
        self.console.print(f"traces in {run / 'traces.db'}")

    def conclude(self, run: Path, summary: dict[str, Any]) -> None:
        """The result: success before and after, two transcripts of one scenario, and paths."""
        console = self.console
        table = Table(title="before and after, on held-out scenarios", title_justify="left")
        for column in ("", "before", "after"):
            table.add_column(column, justify="left" if not column else "right")
        name = summary["measured_by"]
        table.add_row(
            f"{name} (95 % interval)",
            f"{_figure(summary['success_before'])} ({shown(summary['ci95_before'])})",
            f"{_figure(summary['success_after'])} ({shown(summary['ci95_after'])})",
        )
        greedy = [_figure(summary["greedy_before"]), _figure(summary["greedy_after"])]
        table.add_row(f"{name}, greedy", *greedy)
        if name == "success":
            for intent, pair in summary["success_by_intent"].items():
                table.add_row(f"  {intent}", f"{pair['before']:.2f}", f"{pair['after']:.2f}")
        rewards = [summary["mean_reward_before"], summary["mean_reward_after"]]
        table.add_row("mean reward", *(_figure(reward) for reward in rewards))
        ours = summary["graph"] in GRAPHS
        if ours:
            broken = [str(summary["violations_before"]), str(summary["violations_after"])]
            table.add_row("episodes that broke a rule", *broken)
        console.print(table)
        if summary["gain"] is not None:
            console.print(
                f"[bold]gain {summary['gain']:+.3f}[/] (paired 95 % interval "
                f"{shown(summary['gain_ci95'], '+.3f')}) in {summary['seconds_total'] / 60:.1f} minutes, "
                f"at most {sum(summary['peak_rss'].values()) / 1e9:.1f} GB of memory"
            )
        pair = best_pair(run)
        if pair is not None:
            width = max(40, console.width // 2 - 1)
            titled = zip(("before", "after"), pair, strict=True)
            panels = [
                Panel(_transcript(trace), title=title, width=width) for title, trace in titled
            ]
            console.print(Columns(panels))
        console.print(
            Text(
                f"report     {run / 'report.html'}\nsummary    {run / 'summary.json'}\n"
                f"adapter    {run / 'adapter'}\ntraces     stateset-agents traces list {run}"
                + (f"\ntalk to it stateset-agents chat --policy {run}" if ours else "")
            )
        )


def _measured(name: str, result: Measurement) -> str:
    kind = "greedy" if result.temperature == 0 else "sampled"
    figure = "[bold]not scored[/]"
    if result.success is not None:
        figure = (
            f"{result.measured_by} [bold]{result.success:.3f}[/] ({shown(result.ci95)}, {kind})"
        )
    parts = [
        figure,
        f"reward {_figure(result.mean_reward)}",
        f"{result.turns:.1f} turns",
        f"{result.violations} broke a rule" if result.violations else "",
        f"{result.failed} failed" + (", not counted" if result.failed else ""),
        f"{result.truncated} truncated",
        f"{result.waiting} waited for an answer" if result.waiting else "",
        f"{result.unscored} not scored" if result.success is not None and result.unscored else "",
    ]
    reasons = [f"\n  {count} with: {escape(error)}" for error, count in result.errors.items()]
    if result.no_tools is not None:
        reasons.append(f"\n  {escape(result.no_tools)}")
    return f"{name}: {', '.join(filter(None, parts))}" + "".join(reasons)


def _figure(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.3f}"


def _transcript(trace: Trace) -> Text:
    """A conversation as people read it."""
    styles = {"customer": "bold", "input": "bold", "tool": "dim", "calls": "cyan"}
    text = Text()
    for line in lines_of(trace):
        text.append(f"{line.speaker:<8} {line.text}\n", styles.get(line.kind, ""))
    goal = trace.goal_score
    if goal is not None:
        text.append("success" if goal.success else "no success", "green" if goal.success else "red")
    return text


def show_trace(trace: Trace) -> None:
    """One trace in full."""
    console = Console(highlight=False)
    scenario = trace.scenario.id if trace.scenario else "no scenario"
    console.print(
        Text(trace.id, style="bold"),
        f"{scenario}, {trace.status}, {trace.exactness}",
        markup=False,
        emoji=False,
    )
    console.print(_transcript(trace))
    for tool in trace.tool_calls:
        answer = json.dumps(tool.result, ensure_ascii=False, default=str)[:300]
        given = json.dumps(tool.arguments, ensure_ascii=False, default=str)[:200]
        console.print(Text(f"  {tool.name} {given} {tool.status}: {answer}", style="dim"))
    for call in trace.model_calls:
        console.print(
            f"  {call.node} {call.version}: {len(call.prompt_ids)} prompt ids, "
            f"{len(call.sampled_ids)} sampled, {call.finish_reason}, {call.seconds * 1000:.0f} ms",
            markup=False,
            emoji=False,
        )
    for change in trace.changes:
        console.print(
            Text(f"  changed {change.table} {change.key} {change.column} = {change.value}")
        )
    for rule in trace.violations:
        console.print(Text(f"  broke {rule}", style="red"))


def print_offline_step(line: StepLog | ImitationLog) -> None:
    """A line for a step of learning from a store."""
    if isinstance(line, ImitationLog):
        print(f"{line.method} step {line.step}: loss {line.loss:.4f}", flush=True)
        return
    reward = "-" if line.reward is None else f"{line.reward:.3f}"
    print(
        f"step {line.step}: {line.episodes} traces, reward {reward}, {line.tokens_trained} tokens trained, "
        f"importance ratio {line.ratio:.3f}, effective sample size {line.ess:.0%}",
        flush=True,
    )


def trace_table(rows: list[dict[str, object]], total: int) -> None:
    """Traces, one a line."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240  # a pipe has no edge
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("trace", no_wrap=True, min_width=12)
    table.add_column("phase", no_wrap=True, min_width=8)
    for column in ("step", "intent", "status", "ids", "version", "success", "reward"):
        table.add_column(column, overflow="fold")
    for row in rows:
        reward, success = row["reward"], row["success"]
        table.add_row(
            str(row["id"])[:12], str(row["phase"]), str(row["step"]), Text(str(row["intent"] or "")),
            str(row["status"]), str(row["exactness"]), Text(str(row["version"])),
            "-" if success is None else "yes" if success else "no",
            f"{reward:.2f}" if isinstance(reward, float) else "-",
        )  # fmt: skip
    console.print(table)
    console.print(f"{len(rows)} of {total}")
