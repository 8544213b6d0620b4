"""Opens a pair of `.npy` files, mapped and checked, without reading their values."""

import tokenize
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_ml.errors import DataError

# What numpy raises for damaged files: headers that are no dict or of absurd sizes, broken archives.
_UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    RecursionError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


class Pair(NamedTuple):
    """Samples [rows, features] and their labels [rows] or [rows, outputs], with the files they are
    mapped from. `shape`: of one sample as it was saved, images without channels with one.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    x_file: str
    y_file: str
    shape: tuple[int, ...]


def open_pair(folder: Path, split: str) -> Pair:
    """`<split>_x.npy` and `<split>_y.npy`; `DataError` unless both are C-ordered, of real numbers,
    and have one row a sample.
    """
    x_file, y_file = folder / f"{split}_x.npy", folder / f"{split}_y.npy"
    x, y = (
        _open(x_file, f"{split} samples", "fiu", 2, None),
        _open(y_file, f"{split} labels", "fiu", 1, 2),
    )
    if y.ndim == 2 and y.dtype.kind != "f":
        if y.shape[1] != 1:
            raise DataError(
                f"{y_file} holds {y.dtype} {list(y.shape)}, but classes must be one whole number "
                "a sample: [rows]"
            )
        y = y.reshape(-1)
    if len(x) != len(y):
        raise DataError(
            f"{x_file} has {len(x)} rows and {y_file} has {len(y)}; each sample needs one label"
        )
    if x.size == 0 or y.size == 0:
        raise DataError(
            f"{x_file} is {list(x.shape)}, {y_file} {list(y.shape)}; there must be a sample and a "
            "feature"
        )
    shape = (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:]
    return Pair(x.reshape(len(x), -1), y, str(x_file), str(y_file), shape)


def _open(
    file: Path, what: str, kinds: str, least_dims: int, most_dims: int | None
) -> NDArray[Any]:
    if not file.is_file():
        hint = ", or hold samples out with data.test_every=5" if what.startswith("test") else ""
        raise DataError(f"{file} with the {what} is missing; save it there with numpy.save{hint}")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(
            f"{file} is no readable .npy file ({error}); save it again with numpy.save, as plain "
            "numbers"
        ) from None
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{file} is an archive of several arrays; save the one with the {what} with numpy.save"
        )
    if array.dtype.kind not in kinds:
        raise DataError(
            f"{file} holds {array.dtype}, but the {what} must be whole or floating numbers; "
            "convert with astype"
        )
    if array.ndim < least_dims or (most_dims is not None and array.ndim > most_dims):
        need = f"{least_dims} or more" if most_dims is None else f"{least_dims} or {most_dims}"
        raise DataError(
            f"{file} has shape {list(array.shape)}, but the {what} need {need} dims: one row a "
            "sample"
        )
    if not array.flags.c_contiguous:
        raise DataError(
            f"{file} is in Fortran order: a sample is spread over the file; save "
            "numpy.ascontiguousarray of it"
        )
    return np.asarray(array)
