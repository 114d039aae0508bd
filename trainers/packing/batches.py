"""Batches: what goes through the model at once is the trie of some trajectories, up to a budget of tokens.

trajectory 1: calls P1 -> a b; P1 a b T -> c      its span is a b c      one row of a batch: [a b c]
trajectory 2: calls P1 -> a d                     its span is a d                          [a d .]
the trie of the batch: P1 a b T c; d              the model computes P1 and a once

Legend: B trajectories, T the tokens of the longest span, P distinct (node, token) pairs to predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stateset_agents.trainers.packing.tree_attention import Tree
from stateset_agents.trainers.packing.trie import Growing, fold
from stateset_agents.trajectory import Row, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A trajectory and what each of its calls is worth: the same for all, or by node, turn or fork."""

    trajectory: Trajectory
    advantages: tuple[float, ...]
    """One for each row."""

    def __post_init__(self) -> None:
        if len(self.advantages) != len(self.trajectory.rows):
            raise ValueError(
                f"Expected an advantage for each of {len(self.trajectory.rows)} rows, got {len(self.advantages)}."
            )

    @property
    def tokens(self) -> int:
        return self.trajectory.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some samples, as tensors. `sources_BT` has the index of each span token among the P pairs; `mask_BT` is 1 for tokens and
    0 for padding."""

    samples: tuple[Sample, ...]
    ids: torch.Tensor
    """(1, N) tokens of the trie's nodes."""
    depth: torch.Tensor
    """(1, N) their positions."""
    tree: Tree
    paths: tuple[torch.Tensor, ...]
    """Nodes of each row that is not the beginning of another, for a model that reads rows."""
    nodes_P: torch.Tensor
    """The node whose output predicts the token of a pair."""
    tokens_P: torch.Tensor
    sources_BT: torch.Tensor
    sampled_BT: torch.Tensor
    mask_BT: torch.Tensor
    recorded_BT: torch.Tensor
    """Log-probabilities under the distribution that was sampled from."""
    advantages_BT: torch.Tensor
    deep: bool
    """It is larger than the budget, because one trajectory is: its activations are computed twice instead of stored."""

    @property
    def positions_in_rows(self) -> int:
        """Tokens without sharing: every token of every row."""
        return sum(
            len(row.prompt) + len(row.sampled)
            for sample in self.samples
            for row in sample.trajectory.rows
        )

    def to(self, device: torch.device | str) -> "Batch":
        moved = {
            name: getattr(self, name).to(device)
            for name in ("ids", "depth", "nodes_P", "tokens_P", "sources_BT", "sampled_BT",
                         "mask_BT", "recorded_BT", "advantages_BT")
        }  # fmt: skip
        return replace(self, paths=tuple(path.to(device) for path in self.paths), **moved)


def batches(
    samples: Sequence[Sample], budget: int, *, most: int = 1024, every: bool = False
) -> list[Batch]:
    """Pack whole trajectories into batches of up to `budget` nodes and `most` trajectories. Those whose advantages are all 0
    have no gradient and are left out, unless `every` is set, since a KL term counts for each token."""
    made: list[Batch] = []
    chosen: list[Sample] = []
    growing = Growing()
    for sample in samples:
        if not sample.tokens or not (every or any(sample.advantages)):
            continue
        before = growing.nodes
        for row in sample.trajectory.rows:
            growing.add((*row.prompt, *row.sampled))
        if chosen and (growing.nodes > budget or len(chosen) == most):
            made.append(_batch(chosen, deep=before > budget))
            chosen, growing = [], Growing()
            for row in sample.trajectory.rows:
                growing.add((*row.prompt, *row.sampled))
        chosen.append(sample)
    if chosen:
        made.append(_batch(chosen, deep=growing.nodes > budget))
    return made


def _batch(samples: Sequence[Sample], *, deep: bool) -> Batch:
    rows: list[Row] = [row for sample in samples for row in sample.trajectory.rows]
    trie = fold([(*row.prompt, *row.sampled) for row in rows])
    shape = (len(samples), max(sample.tokens for sample in samples))
    nodes, sampled, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    recorded, worth = torch.zeros(shape), torch.zeros(shape)
    number = 0
    for place, sample in enumerate(samples):
        at = 0
        for row, advantage in zip(sample.trajectory.rows, sample.advantages, strict=True):
            first, count = len(row.prompt), len(row.sampled)
            here = slice(at, at + count)
            nodes[place, here] = torch.tensor(trie.nodes(number, first - 1, first - 1 + count))
            sampled[place, here] = torch.tensor(row.sampled)
            recorded[place, here] = torch.tensor(row.logprobs)
            worth[place, here] = advantage
            mask[place, here] = 1
            number, at = number + 1, at + count
    # A node that several samples branch off predicts several tokens: a pair for each.
    base = int(sampled.max()) + 1
    pairs, sources = torch.unique(nodes * base + sampled, return_inverse=True)
    return Batch(
        samples=tuple(samples),
        ids=torch.tensor([trie.ids]),
        depth=torch.tensor([trie.depth]),
        tree=Tree(trie.segments, len(trie.ids)),
        paths=tuple(torch.tensor(trie.nodes(row)) for row in trie.leaves()),
        nodes_P=pairs // base,
        tokens_P=pairs % base,
        sources_BT=sources,
        sampled_BT=sampled,
        mask_BT=mask,
        recorded_BT=recorded,
        advantages_BT=worth,
        deep=deep,
    )
