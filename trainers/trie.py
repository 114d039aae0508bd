"""A trie of tokens: every distinct prefix of a set of rows appears, and is computed, once.

rows  A B C      nodes  A B C D      segments  [A B]  [C]  [D]
      A B D      depth  0 1 2 2      paths     [A B]; [A B][C]; [A B][D]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """Nodes in depth-first order. A segment is a run of nodes with one parent line."""

    ids: list[int]
    depth: list[int]
    """Position of each node in its rows."""
    segments: list[list[tuple[int, int]]]
    """For each segment, the [start, end) runs of nodes from the root to it, itself last."""
    rows: list[list[int]]
    """For each row, the node of each of its tokens."""


def fold(rows: Sequence[Sequence[int]]) -> Trie:
    """The trie of token rows. Which rows come first does not change what is shared."""
    children: list[dict[int, int]] = [{}]
    tokens: list[int] = [-1]
    raw: list[list[int]] = []
    for row in rows:
        at = 0
        nodes: list[int] = []
        for token in row:
            below = children[at].get(token)
            if below is None:
                below = len(tokens)
                children[at][token] = below
                children.append({})
                tokens.append(token)
            at = below
            nodes.append(at)
        raw.append(nodes)
    place = [0] * len(tokens)
    ids: list[int] = []
    depth: list[int] = []
    segments: list[list[tuple[int, int]]] = []
    stack: list[tuple[int, list[tuple[int, int]], int]] = [
        (node, [], 0) for node in reversed(children[0].values())
    ]
    while stack:
        node, path, deep = stack.pop()
        start = len(ids)
        while True:
            place[node] = len(ids)
            ids.append(tokens[node])
            depth.append(deep)
            deep += 1
            if len(children[node]) != 1:
                break
            node = next(iter(children[node].values()))
        path = [*path, (start, len(ids))]
        segments.append(path)
        stack.extend((child, path, deep) for child in reversed(children[node].values()))
    return Trie(
        ids=ids, depth=depth, segments=segments, rows=[[place[n] for n in path] for path in raw]
    )


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
