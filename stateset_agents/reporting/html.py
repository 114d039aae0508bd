"""The report of a run: one HTML file that opens offline, with curves, tables and two transcripts."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stateset_agents.evaluation import shown
from stateset_agents.reporting.kpi import Point
from stateset_agents.reporting.pairs import best_pair
from stateset_agents.reporting.transcript import lines_of
from stateset_agents.rewards.objectives import OBJECTIVES
from stateset_agents.trace import Trace

STYLE = """
:root{--ink:#1c2430;--soft:#667085;--line:#e4e7ec;--one:#2563eb;--two:#d97706;--good:#15803d;--bad:#b91c1c;
--paper:#fff;--wash:#f8fafc}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#344054;--one:#7aa5ff;--two:#fbbf24;
--good:#4ade80;--bad:#f87171;--paper:#101828;--wash:#1d2939}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1040px;margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}
p.soft,td.soft,figcaption{color:var(--soft)}table{border-collapse:collapse;width:100%}th,td{text-align:right;
padding:.3rem .6rem;border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:.75rem;margin:1.25rem 0}
.tile{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}.tile b{display:block;
font-size:1.45rem}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem}
figure{margin:0}svg{width:100%;height:auto}.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
.talk{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:.8rem;overflow-wrap:anywhere}
.talk p{margin:.25rem 0}.who{color:var(--soft);font-size:.8rem;display:block}.call{font-family:ui-monospace,monospace;
font-size:.82rem;color:var(--one)}.tool{font-family:ui-monospace,monospace;font-size:.8rem;color:var(--soft)}
.yes{color:var(--good)}.no{color:var(--bad)}@media(max-width:700px){.pair{grid-template-columns:1fr}}
"""


def write_report(run: Path) -> Path:
    """Write `report.html` from a run's files."""
    summary = json.loads((run / "summary.json").read_text())
    newest = max((run / "steps").glob("[0-9]*"))
    log = json.loads((newest / "log.json").read_text())
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(run.name)}</title><style>{STYLE}</style><h1>Run {html.escape(run.name)}</h1>"
        f"<p class=soft>{summary['steps']} steps of {summary['algorithm']}, groups of {summary['group_size']}; every figure "
        f"below is measured by this run.</p><div class=tiles>{_tiles(summary)}</div>{_warning(log)}"
        f"<div class=charts>{_charts(summary, log)}</div>{_changes(summary)}<h2>By intent</h2><table><tr><th>intent<th>before"
        f"<th>after<th>change</tr>{_intents(summary)}</table>{_conversations(run)}<h2>What it took</h2>"
        f"<table>{_facts(summary)}</table></html>"
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _tiles(summary: dict[str, Any]) -> str:
    name = summary["measured_by"]
    tiles = [
        (f"{name} before", _number(summary["success_before"]), _range(summary["ci95_before"])),
        (f"{name} after", _number(summary["success_after"]), _range(summary["ci95_after"])),
        ("gain, same scenarios", _number(summary["gain"], "+.3f"), shown(summary["gain_ci95"], "+.3f")),
        ("greedy", f"{_number(summary['greedy_before'], '.2f')} &rarr; {_number(summary['greedy_after'], '.2f')}", "temperature 0"),
        ("time", f"{summary['seconds_total'] / 60:.1f} min", f"torch threads: {summary['torch_threads']}"),
    ]  # fmt: skip
    return "".join(
        f"<div class=tile>{label}<b>{value}</b><span class=soft>{note}</span></div>"
        for label, value, note in tiles
    )


def _charts(summary: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    name, steps = summary["measured_by"], [line["step"] for line in log]

    def curve(title: str, *keys: tuple[str, str], percent: bool = False) -> str:
        series = [(label, [line[key] for line in log]) for key, label in keys]
        return chart(title, steps, series, percent=percent)

    return "".join(
        [
            curve(f"{name} in training", ("success", "episodes that succeeded"), percent=True)
            if name == "success"
            else "",
            curve("reward", ("reward", "mean reward")),
            curve("broken rules", ("violations", "episodes"), percent=True),
            *_limits(steps, log, summary.get("limits") or {}),
            _many("objectives, as parts of the reward", steps, log, "parts"),
            _many("held-out scenarios during training", steps, log, "held_out", percent=True),
            _many("mean reward by node", steps, log, "nodes", "reward"),
            _many("mean |advantage| by node", steps, log, "nodes", "advantage"),
            curve("episodes without advantage", ("zero_advantage", "share"), ("flat_groups", "groups"), percent=True),
            curve("KL to the base model", ("kl", "k3 estimate, per token")),
            curve("importance ratio at the step's start", ("ratio", "trained / recorded"), ("ess", "effective sample size")),
            curve("entropy", ("entropy", "nats a token")),
            curve("tokens a step", ("tokens_sampled", "sampled"), ("positions_forwarded", "computed in training")),
            curve("seconds a step", ("seconds_rollout", "roll-out"), ("seconds_train", "training")),
        ]
    )  # fmt: skip


def _warning(log: Sequence[dict[str, Any]]) -> str:
    alarms = [f"step {line['step']}: {line['alarm']}" for line in log if line["alarm"]]
    if not alarms:
        return ""
    return (
        f"<p class=no>The reward and what the shop verified diverged in {len(alarms)} steps, last in "
        f"{html.escape(alarms[-1])}.</p>"
    )


def _changes(summary: dict[str, Any]) -> str:
    changes = "".join(f"<li>{html.escape(change)}</li>" for change in summary["changes"])
    return f"<h2>Settings that changed during training</h2><ul>{changes}</ul>" if changes else ""


def _intents(summary: dict[str, Any]) -> str:
    return "".join(
        f"<tr><td>{html.escape(intent)}</td><td>{pair['before']:.2f}</td><td>{pair['after']:.2f}</td>"
        f"<td>{pair['after'] - pair['before']:+.2f}</td></tr>"
        for intent, pair in summary["success_by_intent"].items()
    )


def _conversations(run: Path) -> str:
    pair = best_pair(run)
    if pair is None:
        return ""
    cards = "".join(
        talk(title, trace) for title, trace in zip(("before", "after"), pair, strict=True)
    )
    return f"<h2>The same customer, before and after</h2><div class=pair>{cards}</div>"


def _facts(summary: dict[str, Any]) -> str:
    shared = summary["positions_in_rows"] / max(1, summary["positions_forwarded"])
    facts = [
        ("episodes trained on", f"{summary['episodes_trained']:,}"),
        ("tokens sampled", f"{summary['tokens_sampled']:,}"),
        ("tokens trained", f"{summary['tokens_trained']:,}"),
        ("positions computed", f"{summary['positions_forwarded']:,}"),
        ("positions without sharing prefixes", f"{summary['positions_in_rows']:,} ({shared:.1f} times as many)"),
        ("held-out scenarios", str(summary["held_out"])),
        ("mean reward", f"{_number(summary['mean_reward_before'])} &rarr; {_number(summary['mean_reward_after'])}"),
        ("held-out episodes that broke a rule", f"{summary['violations_before']} &rarr; {summary['violations_after']}"),
        ("peak memory", " + ".join(f"{name} {size / 1e9:.1f} GB" for name, size in summary["peak_rss"].items())),
        ("seed", str(summary["seed"])),
    ]  # fmt: skip
    return "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in facts)


def _limits(
    steps: Sequence[int], log: Sequence[dict[str, Any]], limits: dict[str, float]
) -> list[str]:
    """For each limit: the limited share, the limit, and the multiplier."""
    charts = []
    for name, share in limits.items():
        happened = [line.get("limits", {}).get(name) for line in log]
        price = [line.get("multipliers", {}).get(name) for line in log]
        series = [(name, happened), (f"limit {share:.0%}", [share] * len(log))]
        charts.append(chart(f"limit on {name}", steps, series))
        charts.append(chart(f"multiplier of {name}", steps, [("what one costs", price)]))
    return charts


def _many(
    title: str, steps: Sequence[int], log: Sequence[dict[str, Any]], key: str, inner: str | None = None,
    *, percent: bool = False,
) -> str:  # fmt: skip
    """A line for each name below `key`, at most four; empty if there is none."""
    names = list(dict.fromkeys(name for line in log for name in line.get(key, {})))[:4]
    series = []
    for name in names:
        values = [line.get(key, {}).get(name) for line in log]
        if inner is not None:
            values = [None if value is None else value.get(inner) for value in values]
        if any(value is not None for value in values):
            series.append((name, values))
    return chart(title, steps, series, percent=percent) if series else ""


def _range(pair: Sequence[float] | None) -> str:
    return f"95 %: {shown(pair)}"


def _number(value: float | None, style: str = ".3f") -> str:
    return "-" if value is None else f"{value:{style}}"


def chart(
    title: str,
    xs: Sequence[int],
    series: Sequence[tuple[str, Sequence[float | None]]],
    *,
    percent: bool = False,
) -> str:
    """Lines over steps as inline SVG with labelled axes; the y axis begins at 0 for shares."""
    points = [v for _, values in series for v in values if v is not None]
    if len(xs) < 2 or not points:
        return ""
    low, high = (0.0, 1.0) if percent else (min(0.0, *points), max(points))
    high = high if high > low else low + 1
    left, top, wide, tall = 44, 12, 300, 130

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + wide * (x - xs[0]) / (xs[-1] - xs[0])
        return across, top + tall * (1 - (y - low) / (high - low))

    def label(value: float) -> str:
        if percent:
            return f"{value:.0%}"
        if abs(value) >= 1000:
            return f"{value / 1000:.3g}k"
        return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3g}"[:6]

    marks = "".join(
        f"<line x1={left} x2={left + wide} y1={place(xs[0], y)[1]:.1f} y2={place(xs[0], y)[1]:.1f} "
        f"stroke='var(--line)'/><text x={left - 6} y={place(xs[0], y)[1] + 4:.1f} text-anchor=end "
        f"font-size=11 fill='var(--soft)'>{label(y)}</text>"
        for y in (low, (low + high) / 2, high)
    )
    lines = ""
    for number, (name, values) in enumerate(series):
        colour = ("var(--one)", "var(--two)", "var(--good)", "var(--bad)")[number % 4]
        path = " ".join(
            f"{a:.1f},{b:.1f}"
            for x, v in zip(xs, values, strict=True)
            if v is not None
            for a, b in [place(x, v)]
        )
        lines += f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=2><title>{html.escape(name)}</title></polyline>"
        lines += (
            f"<text x={left + wide} y={top + tall + 30} dx={-(300 // max(2, len(series))) * (len(series) - 1 - number)} text-anchor=end "
            f"font-size=11 fill='{colour}'>{html.escape(name)}</text>"
        )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox='0 0 356 180' role=img "
        f"aria-label='{html.escape(title)}'>{marks}{lines}<text x={left} y={top + tall + 16} font-size=11 "
        f"fill='var(--soft)'>step {xs[0]}</text><text x={left + wide} y={top + tall + 16} text-anchor=end "
        f"font-size=11 fill='var(--soft)'>{xs[-1]}</text></svg></figure>"
    )


def write_pareto(points: Sequence[Point], objectives: Sequence[str], path: Path) -> None:
    """A page with the first two objectives of several policies as a plot, and all of them as a table."""
    titles = [f"{name} ({OBJECTIVES[name].unit})" for name in objectives]
    rows = "".join(
        f"<tr><td>{html.escape(p.name)}</td>"
        + "".join(
            f"<td>{m:.3f} &plusmn; {r:.3f}</td>" for m, r in zip(p.means, p.reaches, strict=True)
        )
        + f"<td>{'dominated' if p.dominated else 'on the front'}</td></tr>"
        for p in points
    )
    head = "".join(f"<th>{html.escape(title)}" for title in titles)
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Pareto front</title><style>{STYLE}</style><h1>{html.escape(' against '.join(objectives[:2]))}</h1>"
        "<p class=soft>Means over each policy's measured episodes with 95 % intervals; up and to the right is better.</p>"
        f"{scatter(points, titles[0], titles[1])}<table><tr><th>policy{head}<th></tr>{rows}</table></html>",
        encoding="utf-8",
    )


def scatter(points: Sequence[Point], across: str, up: str) -> str:
    """Two objectives as inline SVG, with intervals; the front is joined by a line."""
    left, top, wide, tall = 80, 34, 460, 280
    xs = [v for p in points for v in (p.means[0] - p.reaches[0], p.means[0] + p.reaches[0])]
    ys = [v for p in points for v in (p.means[1] - p.reaches[1], p.means[1] + p.reaches[1])]
    low, high = (min(xs), min(ys)), (max(xs), max(ys))
    spans = [(b - a) or 1.0 for a, b in zip(low, high, strict=True)]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * (x - low[0]) / spans[0], top + tall * (1 - (y - low[1]) / spans[1])

    best = sorted((p for p in points if not p.dominated), key=lambda p: p.means[0])
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*p.means[:2]) for p in best))
    marks = f"<polyline points='{path}' fill=none stroke='var(--soft)' stroke-dasharray='4 4'/>"
    for p in points:
        x, y = place(*p.means[:2])
        (x0, y0), (x1, y1) = (
            place(p.means[0] + sign * p.reaches[0], p.means[1] + sign * p.reaches[1])
            for sign in (-1, 1)
        )
        colour = "var(--soft)" if p.dominated else "var(--one)"
        right = x > left + 0.6 * wide  # beside the point, clear of its interval and of the front
        anchor, aside, below = ("end", -8, 18) if right else ("start", 8, -8)
        label = html.escape(p.name.removeprefix("objectives:"))
        marks += (
            f"<line x1={x0:.1f} x2={x1:.1f} y1={y:.1f} y2={y:.1f} stroke='{colour}'/>"
            f"<line x1={x:.1f} x2={x:.1f} y1={y0:.1f} y2={y1:.1f} stroke='{colour}'/>"
            f"<circle cx={x:.1f} cy={y:.1f} r=5 fill='{colour}'/>"
            f"<text x={x + aside:.1f} y={y + below:.1f} text-anchor={anchor} font-size=12 fill='var(--ink)'>{label}</text>"
        )
    labels = "".join(
        f"<text x={place(v, low[1])[0]:.1f} y={top + tall + 18} text-anchor=middle font-size=11 fill='var(--soft)'>{v:.3g}</text>"
        for v in (low[0], (low[0] + high[0]) / 2, high[0])
    ) + "".join(
        f"<text x={left - 8} y={place(low[0], v)[1] + 4:.1f} text-anchor=end font-size=11 fill='var(--soft)'>{v:.4g}</text>"
        for v in (low[1], (low[1] + high[1]) / 2, high[1])
    )
    return (
        f"<figure><svg viewBox='0 0 580 366' role=img aria-label='{html.escape(up)} against {html.escape(across)}'>"
        f"<path d='M{left} {top}V{top + tall}H{left + wide}' fill=none stroke='var(--line)'/>{marks}{labels}"
        f"<text x={left + wide} y={top + tall + 38} text-anchor=end font-size=12 fill='var(--soft)'>{html.escape(across)}</text>"
        f"<text x={left} y={top - 18} font-size=12 fill='var(--soft)'>{html.escape(up)}</text></svg></figure>"
    )


def talk(title: str, trace: Trace) -> str:
    """A conversation as a card."""
    parts = []
    for line in lines_of(trace):
        text = html.escape(line.text)
        if line.kind == "calls":
            parts.append(f"<p class=call>{text}</p>")
        elif line.kind == "tool":
            parts.append(f"<p class=tool>&rarr; {text}</p>")
        else:
            who = html.escape(line.speaker)
            parts.append(f"<p><span class=who>{who}</span>{text}</p>")
    goal = trace.goal_score
    if goal is not None:
        kind = "yes" if goal.success else "no"
        parts.append(f"<p class={kind}>{'success' if goal.success else 'no success'}</p>")
    return f"<div class=talk><b>{html.escape(title)}</b>{''.join(parts)}</div>"
