"""A trie holds every distinct prefix once, gives every row back, and does not care about order."""

import random
from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.trainers.packing.tree_attention import ancestor_mask, blocks
from stateset_agents.trainers.packing.trie import Growing, fold

ROWS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=10)


def test_the_example_of_the_module() -> None:
    trie = fold([[7, 8, 9], [7, 8, 3]])
    assert trie.ids == [7, 8, 9, 3]
    assert trie.depth == [0, 1, 2, 2]
    assert trie.segments == [(0, 2, 4), (2, 3, 3), (3, 4, 4)]
    assert [trie.nodes(n) for n in (0, 1)] == [[0, 1, 2], [0, 1, 3]]
    assert trie.nodes(1, 1, 3) == [1, 3]
    assert trie.leaves() == [0, 1]


@given(ROWS)
def test_every_row_is_found_again_and_every_prefix_is_there_once(rows: list[list[int]]) -> None:
    trie = fold(rows)
    for number, row in enumerate(rows):
        path = trie.nodes(number)
        assert [trie.nodes(number, a, b) for a in (0, 1, 5) for b in (2, 7)] == [
            path[a:b] for a in (0, 1, 5) for b in (2, 7)
        ]
        assert [trie.ids[node] for node in path] == row
        assert [trie.depth[node] for node in path] == list(range(len(row)))
    prefixes = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert len(trie.ids) == len(prefixes)


@given(ROWS, st.randoms())
def test_arrival_order_changes_nothing(rows: list[list[int]], rng: random.Random) -> None:
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert sorted(fold(rows).ids) == sorted(fold(shuffled).ids)


@given(ROWS)
def test_attention_computes_each_pair_of_a_node_and_an_ancestor_once(rows: list[list[int]]) -> None:
    trie = fold(rows)
    seen: Counter[tuple[int, int]] = Counter()
    for queries, keys, causal in blocks(trie.segments):
        for query in range(queries.start, queries.stop):
            for key in range(keys.start, keys.stop):
                if not causal or key <= query:
                    seen[query, key] += 1
    wanted = {
        (node, above)
        for number in range(len(rows))
        for place, node in enumerate(trie.nodes(number))
        for above in trie.nodes(number)[: place + 1]
    }
    assert set(seen) == wanted
    assert set(seen.values()) == {1}


@given(ROWS)
def test_the_gpus_mask_is_the_same_relation(rows: list[list[int]]) -> None:
    trie = fold(rows)
    count = len(trie.ids)
    sees = ancestor_mask(trie.segments, count, "cpu").mask_mod
    index = torch.arange(count)
    leaves = sees(torch.tensor(0), torch.tensor(0), index[:, None], index[None, :])
    wanted = torch.zeros(count, count, dtype=torch.bool)
    for queries, keys, causal in blocks(trie.segments):
        part = torch.ones(queries.stop - queries.start, keys.stop - keys.start, dtype=torch.bool)
        wanted[queries, keys] = part.tril() if causal else part
    assert torch.equal(leaves, wanted)


@given(ROWS)
def test_growing_counts_the_nodes_without_laying_them_out(rows: list[list[int]]) -> None:
    growing = Growing()
    assert sum(growing.add(row) for row in rows) == growing.nodes == len(fold(rows).ids)


@given(ROWS)
def test_leaves_are_the_rows_that_begin_no_other(rows: list[list[int]]) -> None:
    leaves = [tuple(rows[n]) for n in fold(rows).leaves()]
    every = {tuple(row) for row in rows}
    wanted = {r for r in every if not any(o != r and o[: len(r)] == r for o in every)}
    assert len(leaves) == len(set(leaves))
    assert set(leaves) == wanted


@given(ROWS)
def test_a_segment_is_as_long_as_it_can_be(rows: list[list[int]]) -> None:
    """One for each beginning and each branch: more of them would be more work for attention."""
    following: dict[tuple[int, ...], set[int]] = {}
    for row in rows:
        for end in range(len(row)):
            following.setdefault(tuple(row[:end]), set()).add(row[end])
    branches = sum(len(next_) for prefix, next_ in following.items() if prefix and len(next_) > 1)
    assert len(fold(rows).segments) == len(following[()]) + branches
