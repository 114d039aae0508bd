"""The common prefix of two sequences."""

from collections.abc import Sequence
from typing import Any


def common_prefix(left: Sequence[Any], right: Sequence[Any], unit: int = 1) -> int:
    """Length of the common prefix, a multiple of `unit` (4 for bytes of int32). It compares halved slices, at the speed of C.

    >>> common_prefix((1, 2, 3), (1, 2, 4)), common_prefix(b"aaaabbbb", b"aaaabbcc", unit=4)
    (2, 4)
    """
    low, high = 0, min(len(left), len(right)) // unit * unit
    if left[:high] == right[:high]:
        return high
    if left[:unit] != right[:unit]:
        return 0
    while high - low > unit:
        middle = (low + high) // 2 // unit * unit
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
