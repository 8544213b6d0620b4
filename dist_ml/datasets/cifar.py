"""CIFAR-10 in its binary version: `data_batch_1.bin` … `data_batch_5.bin` and `test_batch.bin`, in
one folder.

A record is one byte of label, then 32 x 32 bytes each of red, green and blue, row by row
(Krizhevsky, "Learning multiple layers of features from tiny images", 2009, the data set's page).
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import DataConfig
from dist_ml.datasets.dataset import Dataset
from dist_ml.datasets.joined import JoinedRows
from dist_ml.datasets.stored import StoredSplit, data_folder, in_order, limited
from dist_ml.errors import DataError

_SHAPE = (3, 32, 32)  # channels, height, width
_RECORD_BYTES = 1 + 3 * 32 * 32
_NUM_CLASSES = 10
_LARGEST_PIXEL = 255
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)


def cifar(config: DataConfig, dtype: torch.dtype) -> Dataset:
    """Pixels are scaled to 0 … 1. Files are mapped; labels are looked at once, all of them."""
    assert config.path is not None
    folder = data_folder(config.path, f"{_TRAIN[0]} … {_TRAIN[-1]} and {_TEST[0]}")

    def split(names: tuple[str, ...], wanted: int | None, key: str) -> StoredSplit:
        records = [_records(folder / name) for name in names]
        x, y = (JoinedRows([part[:, c] for part in records]) for c in (slice(1, None), 0))
        num = limited(len(x), wanted, key, str(folder))
        spelt = f"{folder}: {names[0]}{' and the next' if len(names) > 1 else ''}"
        return StoredSplit(
            x, y, spelt, spelt, in_order, num, _NUM_CLASSES, dtype, 1 / _LARGEST_PIXEL, _SHAPE
        )

    return Dataset(
        "cifar",
        split(_TRAIN, config.num_train, "num_train"),
        split(_TEST, config.num_test, "num_test"),
    )


def _records(file: Path) -> NDArray[np.uint8]:
    """uint8 [records, bytes]; `DataError` for what is no such file."""
    try:
        size = file.stat().st_size
        if size and not size % _RECORD_BYTES:
            records = np.memmap(file, np.uint8, "r").reshape(-1, _RECORD_BYTES)
            _check_labels(file, records[:, 0])
            return records
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing; put the files of CIFAR-10's binary version there, or set "
            "data.path to the folder that has them"
        ) from None
    except OSError as error:
        raise DataError(f"{file} can't be read ({error}); make it readable") from None
    raise DataError(
        f"{file} has {size} bytes, but holds records of {_RECORD_BYTES} (a label and 32 x 32 "
        "pixels of three colours), one at least; get the file of CIFAR-10's binary version again"
    )


def _check_labels(file: Path, labels: NDArray[np.uint8]) -> None:
    row = int(labels.argmax())
    if labels[row] >= _NUM_CLASSES:
        raise DataError(
            f"{file}: record {row} has label {labels[row]}, but labels must be 0 … "
            f"{_NUM_CLASSES - 1}; get the file of CIFAR-10's binary version again (CIFAR-100's "
            "records are of another form)"
        )
