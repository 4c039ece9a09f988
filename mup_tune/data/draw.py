"""The order in which a mixture's sources take turns.

Shape suffixes: N rows drawn so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Draw:
    """Which source each row of the endless order comes from, and which of that source's rows it is.

    A source may have row n while its count is below weight·n; of those that may, the one has it whose count
    would be the first to fall behind weight·n by 1. So after any number of rows each count is within 1 of
    weight·rows: unit jobs, earliest deadline first, feasible since the weights sum to 1 (Liu and Layland, J.
    ACM 1973). In whole numbers, so that nothing is rounded.

    Args:
        parts: the weights times a common factor.
    """

    def __init__(self, parts: Sequence[int]) -> None:
        self._parts, self._whole = parts, sum(parts)
        self._counts = [0] * len(parts)
        self._source_N, self._rank_N = np.empty(0, np.int16), np.empty(0, np.int64)

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Source and place in that source's own order, of the rows [start, stop)."""
        if stop > len(self._source_N):
            self._extend(max(stop, 2 * len(self._source_N)))
        return self._source_N[start:stop], self._rank_N[start:stop]

    def _extend(self, stop: int) -> None:
        first, whole, counts = len(self._source_N), self._whole, self._counts
        parts = list(enumerate(self._parts))
        source_N, rank_N = np.empty(stop, np.int16), np.empty(stop, np.int64)
        source_N[:first], rank_N[:first] = self._source_N, self._rank_N
        for row in range(first, stop):
            turns = (
                (-(-(counts[s] + 1) * whole // part), s) for s, part in parts if counts[s] * whole < part * (row + 1)
            )
            source = min(turns)[1]
            source_N[row], rank_N[row] = source, counts[source]
            counts[source] += 1
        self._source_N, self._rank_N = source_N, rank_N
