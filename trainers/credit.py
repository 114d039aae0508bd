"""Credit: the advantage of each model call of each episode, from the scores of a group.

trajectory   every call of an episode gets the episode's advantage over its group
node, turn   a call is compared with all episodes that reached its node, or turn
forks        at a decision that was forked, the episode and its forks are compared only with each other:

    episode   a b c d -> 0        at c the scores 0, 1, 1 are compared: c d get the first advantage, each fork its own
    fork at c     c' d' -> 1      before c the episode counts with the mean, 2/3, and with it a b are compared with
    fork at c     c" d" -> 1      the group's other whole episodes
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stateset_agents.trace import Trace
from stateset_agents.trainers.config import Credit
from stateset_agents.trainers.packing.batches import Sample
from stateset_agents.trajectory import Row, Trajectory, trajectory

Values = Sequence[float | None]
"""Scores of a group's traces; None if one could not be scored."""
Advantages = Callable[[Values], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """The traces of one scenario with their scores."""

    traces: Sequence[Trace]
    values: Values
    by_node: Mapping[str, Values]
    """Separate scores for calls at these nodes, used with credit `node`."""


def samples(
    group: Graded, how: Credit, advantages: Advantages, adapters: Mapping[str, Sequence[str]]
) -> dict[str, list[Sample]]:
    """Samples for each adapter, with the rows at its nodes (all, if it names none). A trace without a score is in no sample and
    no comparison."""
    every = [
        trajectory(trace) if value is not None else Trajectory(trace_id=trace.id, rows=())
        for trace, value in zip(group.traces, group.values, strict=True)
    ]
    if how == "trajectory":
        by_call = _forked(group, every, advantages)
    else:
        by_call = _keyed(group, every, advantages, how)
    by_adapter: dict[str, list[Sample]] = {}
    for name, nodes in adapters.items():
        by_adapter[name] = []
        for whole, mine, value in zip(every, by_call, group.values, strict=True):
            if value is None:
                continue
            rows = tuple(
                row for row in whole.rows if not nodes or row.node in nodes or row.agent in nodes
            )
            by_adapter[name].append(
                Sample(
                    trajectory=Trajectory(trace_id=whole.trace_id, rows=rows),
                    advantages=tuple(mine.get(row.number, 0.0) for row in rows),
                )
            )
    return by_adapter


def _keyed(
    group: Graded, every: Sequence[Trajectory], advantages: Advantages, how: Credit
) -> list[dict[int, float]]:
    """Credit by node or turn. The baseline at a turn is over all episodes that reached it, not only those that ended there;
    otherwise the decision to end would be compared with nothing."""

    def key(row: Row) -> str:
        return row.node if how == "node" else str(row.turn)

    there: dict[str, set[int]] = defaultdict(set)
    for number, episode in enumerate(every):
        for row in episode.rows:
            there[key(row)].add(number)
    by_call: list[dict[int, float]] = [{} for _ in every]
    for name, numbers in there.items():
        values = group.by_node.get(name, group.values) if how == "node" else group.values
        reached = sorted(numbers)
        if len(reached) < 2:
            continue
        group_advantages = advantages([values[n] for n in reached])
        for number, advantage in zip(reached, group_advantages, strict=True):
            for row in every[number].rows:
                if key(row) == name:
                    by_call[number][row.number] = advantage
    return by_call


def _forked(
    group: Graded, every: Sequence[Trajectory], advantages: Advantages
) -> list[dict[int, float]]:
    """Credit by episode, and for forks at the decisions where they begin."""
    places = {trace.id: number for number, trace in enumerate(group.traces)}
    children: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    roots = []
    for number, trace in enumerate(group.traces):
        above = places.get(trace.forked.trace) if trace.forked else None
        if above is None or trace.forked is None:
            roots.append(number)
        else:
            children[above][trace.forked.calls].append(number)
    by_call: list[dict[int, float]] = [{} for _ in every]

    def give(number: int, start: float, end: float, advantage: float) -> None:
        for row in every[number].rows:
            if start <= row.number < end:
                by_call[number][row.number] = advantage

    def settle(number: int) -> tuple[float | None, float]:
        """An episode's value at its beginning, and the number of its first forked call."""
        value, end = group.values[number], math.inf
        for at in sorted(children[number], reverse=True):
            below = [settle(child) for child in children[number][at]]
            values = [value, *(value_below for value_below, _ in below)]
            group_advantages = advantages(values)
            give(number, at, end, group_advantages[0])
            for child, (_, first), advantage in zip(
                children[number][at], below, group_advantages[1:], strict=True
            ):
                give(child, 0, first, advantage)
            scored = [v for v in values if v is not None]
            value = math.fsum(scored) / len(scored) if scored else None
            end = at
        return value, end

    settled = [settle(number) for number in roots]
    if len(roots) == 1 and any(
        trace.forked for trace in group.traces
    ):  # one episode and its forks: nothing to compare its beginning with
        return by_call
    group_advantages = advantages([value for value, _ in settled])
    for number, (_, first), advantage in zip(roots, settled, group_advantages, strict=True):
        give(number, 0, first, advantage)
    return by_call
