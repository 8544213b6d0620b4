"""Rows that lie in several arrays, as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_ml.datasets.dataset import Ids


class JoinedRows:
    """Arrays alike in all but their number of rows, one after the other; nothing is copied but the
    rows that `take` is asked for.
    """

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = parts
        self._stops = np.cumsum([len(part) for part in parts])
        self._num_rows = int(self._stops[-1])
        self.shape = (self._num_rows, *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self._num_rows

    def take(self, rows: Ids, axis: int = 0) -> NDArray[Any]:
        """The `rows`, in their order; as numpy's, along the first axis alone."""
        assert axis == 0, axis
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        holders = np.searchsorted(self._stops, rows, side="right")
        for number in np.unique(holders):
            part, wanted = self._parts[number], holders == number
            # not `part.take`, which copies all of an array whose rows lie apart
            found[wanted] = part[rows[wanted] - (self._stops[number] - len(part))]
        return found
