"""A trie of tokens: every distinct prefix of a set of rows appears, and is computed, once.

rows  A B C      nodes  A B C D      segments  [A B]  [C]  [D]
      A B D      depth  0 1 2 2      paths     [A B]; [A B][C]; [A B][D]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """Nodes in depth-first order. A segment is a run of nodes with one parent line."""

    ids: list[int]
    depth: list[int]
    """Position of each node in its rows."""
    segments: list[list[tuple[int, int]]]
    """For each segment, the [start, end) runs of nodes from the root to it, itself last."""
    runs: list[list[tuple[int, int]]]
    """For each row, the [start, end) runs of nodes that its tokens are."""

    def nodes(self, row: int, start: int = 0, end: int | None = None) -> list[int]:
        """The nodes of a row's tokens from `start` to `end`."""
        found: list[int] = []
        at = 0
        for first, last in self.runs[row]:
            stop = last if end is None else min(last, first + end - at)
            found.extend(range(first + max(0, start - at), stop))
            at += last - first
        return found


@dataclass(slots=True)
class _Edge:
    """A run of tokens without a branch, and what goes on from its end."""

    tokens: tuple[int, ...]
    children: dict[int, "_Edge"] = field(default_factory=dict)
    start: int = 0
    """Its first node, once the trie is laid out."""


def fold(rows: Sequence[Sequence[int]]) -> Trie:
    """The trie of token rows. Which rows come first does not change what is shared.

    Whole runs of tokens are compared, in C: most of a row has been seen.
    """
    whole = [tuple(row) for row in rows]
    root = _Edge(())
    for row in whole:
        _insert(root, row)
    ids: list[int] = []
    depth: list[int] = []
    segments: list[list[tuple[int, int]]] = []
    stack: list[tuple[_Edge, list[tuple[int, int]], int]] = [
        (edge, [], 0) for edge in reversed(root.children.values())
    ]
    while stack:
        edge, path, deep = stack.pop()
        first = edge.start = len(ids)
        ids.extend(edge.tokens)
        while len(edge.children) == 1:  # a row that goes on where another ended: the same segment
            (edge,) = edge.children.values()
            edge.start = len(ids)
            ids.extend(edge.tokens)
        below = deep + len(ids) - first
        depth.extend(range(deep, below))
        path = [*path, (first, len(ids))]
        segments.append(path)
        stack.extend((child, path, below) for child in reversed(edge.children.values()))
    return Trie(ids=ids, depth=depth, segments=segments, runs=[_runs(root, row) for row in whole])


def _insert(root: _Edge, row: tuple[int, ...]) -> None:
    edge, at = root, 0
    while at < len(row):
        below = edge.children.get(row[at])
        if below is None:
            edge.children[row[at]] = _Edge(row[at:])
            return
        shared = _common(below.tokens, row[at : at + len(below.tokens)])
        at += shared
        if shared < len(below.tokens) and at < len(row):
            rest = below.tokens[shared:]
            below.children = {rest[0]: _Edge(rest, below.children)}
            below.tokens = below.tokens[:shared]
        edge = below


def _runs(root: _Edge, row: tuple[int, ...]) -> list[tuple[int, int]]:
    """The nodes of a row that is in the trie."""
    edge, runs, at = root, list[tuple[int, int]](), 0
    while at < len(row):
        edge = edge.children[row[at]]
        count = min(len(edge.tokens), len(row) - at)
        runs.append((edge.start, edge.start + count))
        at += count
    return runs


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two runs begin with in common."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A trie as attention reads it."""

    gather: torch.Tensor
    """(sum of path lengths,) nodes of every segment's path, one path after another."""
    queries: list[int]
    """Nodes of each segment."""
    keys: list[int]
    """Nodes on each segment's path, itself included."""


def tree(trie: Trie) -> Tree:
    pieces = [torch.arange(a, b) for path in trie.segments for a, b in path]
    return Tree(
        gather=torch.cat(pieces),
        queries=[path[-1][1] - path[-1][0] for path in trie.segments],
        keys=[sum(b - a for a, b in path) for path in trie.segments],
    )
