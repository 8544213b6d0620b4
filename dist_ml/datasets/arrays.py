"""The user's own samples: `.npy` files in one folder, mapped into memory, so that a rank touches
only the rows it needs.

`train_x.npy` [samples, features …] of any real dtype ([samples, channels, height, width], or
without channels, are images to models that take such), `train_y.npy` [samples] whole numbers =
classes, or [samples] or [samples, outputs] floating = values to regress on; `test_x.npy`,
`test_y.npy` likewise, or instead of them `data.test_every`.
"""

from pathlib import Path

import torch

from dist_ml.config.data import DataConfig
from dist_ml.datasets.dataset import Dataset, Ids
from dist_ml.datasets.npy import Pair, open_pair
from dist_ml.datasets.stored import Locate, StoredSplit, data_folder, in_order, limited
from dist_ml.errors import ConfigError, DataError

# Up to so many classes are taken from the highest label, however few samples there are.
_CLASSES_WITHOUT_ASKING = 1 << 16


def arrays(config: DataConfig, dtype: torch.dtype) -> Dataset:
    """Values are used as they are, unscaled; finiteness and labels are checked in every batch, for
    the rows it touches.

    With `num_outputs` null the training labels are read once, for the highest.
    """
    assert config.path is not None
    folder = data_folder(config.path, "train_x.npy and train_y.npy")
    train = open_pair(folder, "train")
    num_outputs = _num_outputs(train, config.num_outputs)

    def split(
        pair: Pair, locate: Locate, available: int, wanted: int | None, key: str
    ) -> StoredSplit:
        num = limited(available, wanted, key, str(folder))
        x, y, x_file, y_file, shape = pair
        sizes = num, num_outputs
        return StoredSplit(x, y, x_file, y_file, locate, *sizes, dtype, shape=shape)

    every = config.test_every
    if every is None:
        test = open_pair(folder, "test")
        _check_alike(train, test)
        return Dataset(
            "arrays",
            split(train, in_order, len(train.x), config.num_train, "num_train"),
            split(test, in_order, len(test.x), config.num_test, "num_test"),
        )
    num_test = _num_held_out(folder, len(train.x), every)
    return Dataset(
        "arrays",
        split(
            train,
            lambda ids: kept_rows(ids, every),
            len(train.x) - num_test,
            config.num_train,
            "num_train",
        ),
        split(train, lambda ids: held_out_rows(ids, every), num_test, config.num_test, "num_test"),
    )


def kept_rows(ids: Ids, every: int) -> Ids:
    """The rows of training samples when each `every`-th row is held out: 0 … every-2, every … 2
    every - 2, and so on.
    """
    return ids + ids // (every - 1)


def held_out_rows(ids: Ids, every: int) -> Ids:
    """The rows of test samples: every - 1, 2 every - 1, and so on."""
    return ids * every + (every - 1)


def _num_held_out(folder: Path, num_rows: int, every: int) -> int:
    if (folder / "test_x.npy").exists():
        raise ConfigError(
            f"data.test_every={every} but {folder} holds test_x.npy; leave data.test_every out or "
            "move the file"
        )
    if num_rows < every:
        raise ConfigError(
            f"data.test_every={every} holds nothing out of {num_rows} rows; use a smaller one, or "
            "more samples"
        )
    return num_rows // every


def _num_outputs(train: Pair, wanted: int | None) -> int:
    if train.y.dtype.kind != "f":
        return _num_classes(train) if wanted is None else _at_least_two(train, wanted)
    found = 1 if train.y.ndim == 1 else int(train.y.shape[1])
    if wanted not in (None, found):
        raise ConfigError(
            f"data.num_outputs={wanted} but {train.y_file} holds {found} values a sample; leave "
            "data.num_outputs out"
        )
    return found


def _num_classes(train: Pair) -> int:
    """The highest label + 1; `DataError` where that is no likely number of classes, since a mistake
    in one label would make the model as large.
    """
    row = int(train.y.argmax())
    highest = int(train.y[row])
    if highest >= max(_CLASSES_WITHOUT_ASKING, len(train.y)):
        raise DataError(
            f"{train.y_file}: row {row} has label {highest}, which makes {highest + 1} classes of "
            f"{len(train.y)} samples; mend the label, number the classes from 0, or set "
            f"data.num_outputs={highest + 1} if they are so many"
        )
    return max(2, highest + 1)


def _at_least_two(train: Pair, wanted: int) -> int:
    if wanted < 2:
        raise ConfigError(
            f"data.num_outputs={wanted} is too few classes to tell apart, and {train.y_file} holds "
            "whole numbers: set data.num_outputs=2 or more, or save values to regress on as floats"
        )
    return wanted


def _check_alike(train: Pair, test: Pair) -> None:
    if train.x.shape[1] != test.x.shape[1]:
        raise DataError(
            f"{test.x_file} has {test.x.shape[1]} features, {train.x_file} {train.x.shape[1]}; "
            "they must agree"
        )
    if train.shape != test.shape and min(len(train.shape), len(test.shape)) > 1:
        raise DataError(
            f"{test.x_file} holds samples of {_spell(test.shape)}, {train.x_file} of "
            f"{_spell(train.shape)}; they must agree"
        )
    kinds = train.y.dtype.kind == "f", test.y.dtype.kind == "f"
    if kinds[0] != kinds[1] or train.y.shape[1:] != test.y.shape[1:]:
        raise DataError(
            f"{test.y_file} is {test.y.dtype} {list(test.y.shape)} but {train.y_file} is "
            f"{train.y.dtype} {list(train.y.shape)}; "
            "both must be classes, or both values of one shape"
        )


def _spell(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
