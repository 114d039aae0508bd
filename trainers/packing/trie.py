"""A trie of tokens: every distinct prefix of a set of rows appears, and is computed, once.

rows  A B C      nodes  A B C D      segments  [A B]  [C]  [D]
      A B D      depth  0 1 2 2      reaching  to D   to C to D    (all that comes after a prefix lies right behind it)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stateset_agents.prefix import common_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """Nodes in depth-first order. A segment is a run of nodes with one parent line."""

    ids: list[int]
    depth: list[int]
    """Position of each node in its rows."""
    segments: list[tuple[int, int, int]]
    """For each segment (start, end, reach): its nodes are [start, end), and [end, reach) are those below it, which are the
    nodes, besides its own, that have it as an ancestor."""
    runs: list[list[tuple[int, int]]]
    """For each row, the [start, end) runs of nodes that its tokens are."""

    def nodes(self, row: int, start: int = 0, end: int | None = None) -> list[int]:
        """The nodes of a row's tokens from `start` to `end`."""
        nodes: list[int] = []
        at = 0
        for first, last in self.runs[row]:
            stop = last if end is None else min(last, first + end - at)
            nodes.extend(range(first + max(0, start - at), stop))
            at += last - first
        return nodes

    def leaves(self) -> list[int]:
        """Rows that are not the beginning of another, without duplicates."""
        ends = {end for _, end, reach in self.segments if end == reach}
        last_rows = {runs[-1][1]: row for row, runs in enumerate(self.runs)}
        return sorted(row for end, row in last_rows.items() if end in ends)


@dataclass(slots=True)
class _Edge:
    """A segment of tokens without a branch, and its continuations."""

    tokens: tuple[int, ...]
    children: dict[int, "_Edge"] = field(default_factory=dict)
    start: int = 0
    """Its first node, after the trie is laid out."""


def fold(rows: Sequence[Sequence[int]]) -> Trie:
    """The trie of token rows. The order of rows does not change what is shared. Whole segments are compared, in C, because most
    of a row was seen before."""
    whole = [tuple(row) for row in rows]
    root = _Edge(())
    for row in whole:
        _insert(root, row)
    ids: list[int] = []
    depth: list[int] = []
    begun: list[tuple[int, int, int]] = []  # start, end and the segment above, -1 for none
    stack = [(edge, -1, 0) for edge in reversed(root.children.values())]
    while stack:
        edge, above, deep = stack.pop()
        first = edge.start = len(ids)
        ids.extend(edge.tokens)
        while len(edge.children) == 1:  # a row that goes on where another ended: the same segment
            (edge,) = edge.children.values()
            edge.start = len(ids)
            ids.extend(edge.tokens)
        below = deep + len(ids) - first
        depth.extend(range(deep, below))
        begun.append((first, len(ids), above))
        here = len(begun) - 1
        stack.extend((child, here, below) for child in reversed(edge.children.values()))
    reach = [end for _, end, _ in begun]
    for number in range(len(begun) - 1, -1, -1):  # whatever is below a segment comes after it
        above = begun[number][2]
        if above >= 0:
            reach[above] = max(reach[above], reach[number])
    segments = [(start, end, to) for (start, end, _), to in zip(begun, reach, strict=True)]
    return Trie(ids=ids, depth=depth, segments=segments, runs=[_runs(root, row) for row in whole])


class Growing:
    """Counts the nodes of the rows so far, without laying out the trie."""

    def __init__(self) -> None:
        self._root = _Edge(())
        self.nodes = 0

    def add(self, row: Sequence[int]) -> int:
        """Add a row; returns the number of new nodes."""
        grown = _insert(self._root, tuple(row))
        self.nodes += grown
        return grown


def _insert(root: _Edge, row: tuple[int, ...]) -> int:
    """Add a row; returns the number of new nodes."""
    edge, at = root, 0
    while at < len(row):
        below = edge.children.get(row[at])
        if below is None:
            edge.children[row[at]] = _Edge(row[at:])
            return len(row) - at
        shared = common_prefix(below.tokens, row[at : at + len(below.tokens)])
        at += shared
        if shared < len(below.tokens) and at < len(row):
            rest = below.tokens[shared:]
            below.children = {rest[0]: _Edge(rest, below.children)}
            below.tokens = below.tokens[:shared]
        edge = below
    return 0


def _runs(root: _Edge, row: tuple[int, ...]) -> list[tuple[int, int]]:
    """The nodes of a row that is in the trie."""
    edge, runs, at = root, list[tuple[int, int]](), 0
    while at < len(row):
        edge = edge.children[row[at]]
        count = min(len(edge.tokens), len(row) - at)
        runs.append((edge.start, edge.start + count))
        at += count
    return runs
