"""A trie holds every distinct prefix once, gives every row back, and does not care about order."""

import random

from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.trainers.trie import fold, tree

ROWS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=10)


def test_the_example_of_the_module() -> None:
    trie = fold([[7, 8, 9], [7, 8, 3]])
    assert trie.ids == [7, 8, 9, 3]
    assert trie.depth == [0, 1, 2, 2]
    assert trie.segments == [[(0, 2)], [(0, 2), (2, 3)], [(0, 2), (3, 4)]]
    assert [trie.nodes(n) for n in (0, 1)] == [[0, 1, 2], [0, 1, 3]]
    assert trie.nodes(1, 1, 3) == [1, 3]
    read = tree(trie)
    assert read.gather.tolist() == [0, 1, 0, 1, 2, 0, 1, 3]
    assert (read.queries, read.keys) == ([2, 1, 1], [2, 3, 3])


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
def test_a_segment_sees_exactly_its_ancestors(rows: list[list[int]]) -> None:
    trie = fold(rows)
    owner = {node: path for path in trie.segments for node in range(*path[-1])}
    for number in range(len(rows)):
        path = trie.nodes(number)
        for place, node in enumerate(path):
            seen = [n for start, end in owner[node] for n in range(start, end) if n <= node]
            assert seen == path[: place + 1]


@given(ROWS)
def test_a_segment_is_as_long_as_it_can_be(rows: list[list[int]]) -> None:
    """One for each beginning and each branch: more of them would be more work for attention."""
    following: dict[tuple[int, ...], set[int]] = {}
    for row in rows:
        for end in range(len(row)):
            following.setdefault(tuple(row[:end]), set()).add(row[end])
    branches = sum(len(next_) for prefix, next_ in following.items() if prefix and len(next_) > 1)
    assert len(fold(rows).segments) == len(following[()]) + branches
