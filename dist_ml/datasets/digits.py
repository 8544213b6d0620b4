"""The UCI handwritten digits, packaged: 8 x 8 images of ten classes (`DIGITS.md` has origin and
licence).
"""

import importlib.resources

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import DataConfig
from dist_ml.datasets.dataset import Dataset, Ids
from dist_ml.datasets.stored import StoredSplit, limited

_FILE = "digits.npz"
_LARGEST_PIXEL = 16
_SHAPE = (1, 8, 8)  # channels, height, width


def digits(config: DataConfig, dtype: torch.dtype) -> Dataset:
    """Every `test_every`-th sample of each class, in file order, is for testing; pixels are scaled
    to 0 … 1.
    """
    assert config.test_every is not None
    with (
        (importlib.resources.files("dist_ml.datasets") / _FILE).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        images, labels = arrays["images"], arrays["labels"]
    testing = held_out(labels, config.test_every)

    def split(rows: Ids, wanted: int | None, key: str) -> StoredSplit:
        num = limited(
            len(rows), wanted, key, f"data=digits with data.test_every={config.test_every}"
        )
        return StoredSplit(
            images,
            labels,
            _FILE,
            _FILE,
            rows.__getitem__,
            num,
            10,
            dtype,
            1 / _LARGEST_PIXEL,
            _SHAPE,
        )

    train, test = np.flatnonzero(~testing), np.flatnonzero(testing)
    return Dataset(
        "digits",
        split(train, config.num_train, "num_train"),
        split(test, config.num_test, "num_test"),
    )


def held_out(labels: NDArray[np.uint8], every: int) -> NDArray[np.bool_]:
    """Marks the `every`-th, 2 `every`-th, … sample of each class, counted in file order."""
    marked = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        marked[np.flatnonzero(labels == label)[every - 1 :: every]] = True
    return marked
