"""Samples that are stored: two arrays, in memory or mapped from files, one row a sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import Task
from dist_ml.datasets.dataset import NUMPY_DTYPES, Batch, Ids
from dist_ml.errors import ConfigError, DataError

Array = NDArray[Any]
Locate = Callable[[Ids], Ids]


class Rows(Protocol):
    """What samples are taken from: an array, or several in a row."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def take(self, rows: Ids, /, axis: int) -> Array: ...


@dataclass(frozen=True)
class StoredSplit:
    """Rows of `x` [rows, features] and `y` ([rows], or [rows, outputs] to regress on); only rows
    asked for are touched.
    """

    x: Rows  # numbers of any real dtype
    y: Rows  # whole numbers = classes; floating = values to regress on
    x_file: str  # what error messages call the two
    y_file: str
    locate: Locate  # sample ids -> rows
    num_samples: int
    num_outputs: int
    dtype: torch.dtype  # of x, and of y to regress on
    scale: float = 1.0  # x is multiplied by it
    shape: tuple[int, ...] | None = None  # of a sample; default: (features,)

    @property
    def num_features(self) -> int:
        return int(self.x.shape[1])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.shape or (self.num_features,)

    @property
    def task(self) -> Task:
        return "regression" if self.y.dtype.kind == "f" else "classification"

    def batch(self, ids: Ids) -> Batch:
        rows = self.locate(ids)
        dtype = NUMPY_DTYPES[self.dtype]
        with np.errstate(over="ignore"):  # an infinity by overflow is told with its row, below
            x = self.x.take(rows, axis=0).astype(dtype, copy=False)
        if self.scale != 1.0:
            x *= dtype(self.scale)
        if self.x.dtype.kind == "f":
            _check_finite(x, rows, self.x_file, self.dtype)
        y = self.y.take(rows, axis=0)
        if self.task == "regression":
            with np.errstate(over="ignore"):
                y = y.astype(dtype, copy=False).reshape(len(ids), self.num_outputs)
            _check_finite(y, rows, self.y_file, self.dtype)
        else:
            _check_labels(y, rows, self.y_file, self.num_outputs)  # as stored: uint64 may not fit
            y = y.astype(np.int64, copy=False)
        return Batch(torch.from_numpy(x), torch.from_numpy(y), ids, len(ids))


def data_folder(path: str, holds: str) -> Path:
    """`path` as the folder of a dataset's files; `DataError` where it is none."""
    folder = Path(path)
    try:
        found = folder.is_dir()
    except (OSError, ValueError):  # a name that is too long, or can't be one
        found = False
    if not found:
        raise DataError(f"data.path={path} is not a folder; give the one that holds {holds}")
    return folder


def in_order(ids: Ids) -> Ids:
    """Sample i is row i."""
    return ids


def limited(available: int, wanted: int | None, key: str, where: str) -> int:
    """How many of the `available` samples to use; `ConfigError` where `wanted` are more, or there
    are none.
    """
    if available == 0:
        raise ConfigError(f"{where} leaves no sample for data.{key}; use a smaller data.test_every")
    if wanted is not None and wanted > available:
        raise ConfigError(
            f"data.{key}={wanted} but {where} holds {available} samples for it; set data.{key} to "
            "at most that"
        )
    return available if wanted is None else wanted


def _check_finite(values: Array, rows: Ids, file: str, dtype: torch.dtype) -> None:
    """One sum tells almost always; the slow look follows only where it is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(values.sum()):
            return
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        name = str(dtype).removeprefix("torch.")
        raise DataError(
            f"{file}: row {rows[row]}, column {column} holds {values[row, column]} (as {name}), "
            "but every value must be finite; "
            "remove or mend the sample"
        )


def _check_labels(labels: Array, rows: Ids, file: str, num_classes: int) -> None:
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        bad = int(np.flatnonzero((labels < 0) | (labels >= num_classes))[0])
        raise DataError(
            f"{file}: row {rows[bad]} has label {labels[bad]}, but labels must be 0 … "
            f"{num_classes - 1}; mend the label, "
            "or set data.num_outputs to the number of classes"
        )
