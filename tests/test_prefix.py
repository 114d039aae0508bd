"""The common prefix is that of a loop over single items, for lists, tuples and bytes in units."""

from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.prefix import common_prefix

items = st.lists(st.integers(0, 2), max_size=40)


def naive(left: list[int], right: list[int]) -> int:
    count = 0
    for first, second in zip(left, right, strict=False):
        if first != second:
            break
        count += 1
    return count


@given(items, items, items)
def test_it_is_the_naive_one(shared: list[int], left: list[int], right: list[int]) -> None:
    left, right = shared + left, shared + right
    assert common_prefix(left, right) == naive(left, right)
    assert common_prefix(tuple(left), tuple(right)) == naive(left, right)


@given(items, items, items)
def test_in_units_of_bytes(shared: list[int], left: list[int], right: list[int]) -> None:
    left, right = shared + left, shared + right

    def in_bytes(numbers: list[int]) -> bytes:
        return b"".join(number.to_bytes(4, "little") for number in numbers)

    assert common_prefix(in_bytes(left), in_bytes(right), unit=4) == 4 * naive(left, right)
