"""`common_prefix`: how far two sequences are the same."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    left, right = tuple(one), tuple(other)
    low, high = 0, min(len(left), len(right))
    while low < high:  # slices are compared a hundred times as fast as items in a loop
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
