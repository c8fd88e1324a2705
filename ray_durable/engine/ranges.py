"""A set of integers, kept as disjoint ranges: which items of a map have no outcome yet.

Adding or taking out a range costs a binary search in the number of ranges held, whatever their lengths.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

__all__ = ["RangeSet"]


class RangeSet:
    """Disjoint, sorted, half-open ranges of integers. `len()` counts the integers."""

    __slots__ = ("_size", "_starts", "_stops")

    def __init__(self, start: int = 0, stop: int = 0) -> None:
        self._starts: list[int] = [start] if start < stop else []
        self._stops: list[int] = [stop] if start < stop else []
        self._size = max(0, stop - start)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[range]:
        """The ranges, in ascending order."""
        return map(range, self._starts, self._stops)

    def __contains__(self, item: int) -> bool:
        return self.covers(item, item + 1)

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of `start` to `stop - 1` are in the set."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and stop <= self._stops[at]

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any of `start` to `stop - 1` is in the set."""
        at = bisect_left(self._starts, stop) - 1
        return at >= 0 and start < stop and start < self._stops[at]

    def within(self, start: int, stop: int) -> list[range]:
        """The parts of the set between `start` and `stop - 1`."""
        first, last = self._touching(start, stop)
        parts = zip(self._starts[first:last], self._stops[first:last], strict=True)
        return [range(max(low, start), min(high, stop)) for low, high in parts]

    def add(self, start: int, stop: int) -> None:
        """Put `start` to `stop - 1` in, joining what it touches."""
        if start >= stop:
            return
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._replace(first, last, [(start, stop)])

    def remove(self, start: int, stop: int) -> None:
        """Take `start` to `stop - 1` out, as far as they are in."""
        first, last = self._touching(start, stop)
        if first == last:
            return
        before, after = (self._starts[first], start), (stop, self._stops[last - 1])
        self._replace(first, last, [part for part in (before, after) if part[0] < part[1]])

    def clear(self) -> None:
        """Take everything out."""
        self._starts, self._stops, self._size = [], [], 0

    def _touching(self, start: int, stop: int) -> tuple[int, int]:
        if start >= stop:
            return 0, 0
        return bisect_right(self._stops, start), bisect_left(self._starts, stop)

    def _replace(self, first: int, last: int, parts: list[tuple[int, int]]) -> None:
        self._size -= sum(self._stops[first:last]) - sum(self._starts[first:last])
        self._size += sum(stop - start for start, stop in parts)
        self._starts[first:last] = [start for start, _ in parts]
        self._stops[first:last] = [stop for _, stop in parts]
