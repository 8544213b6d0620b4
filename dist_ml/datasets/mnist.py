"""MNIST and its relatives in IDX files: `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, gzipped or
not, in one folder.

IDX: two zero bytes, a dtype code, the number of dims, each dim as a big-endian 32-bit number, then
the values (LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file formats).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import DataConfig
from dist_ml.datasets.dataset import Dataset
from dist_ml.datasets.stored import StoredSplit, data_folder, in_order, limited
from dist_ml.errors import DataError

_UNSIGNED_BYTE = 8
_DTYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
_LARGEST_PIXEL = 255


def mnist(config: DataConfig, dtype: torch.dtype) -> Dataset:
    """The classes are 0 … the highest training label; pixels are scaled to 0 … 1."""
    assert config.path is not None
    folder = data_folder(config.path, "train-images-idx3-ubyte[.gz] and the rest")
    train, test = _pair(folder, "train"), _pair(folder, "t10k")
    size, test_size = train[0].shape[1:], test[0].shape[1:]
    if size != test_size:
        raise DataError(
            f"{folder}: images of {_spell(size)} pixels to train on and of {_spell(test_size)} to "
            "test on; must be equal"
        )
    num_classes = max(2, int(train[1].max()) + 1)

    def split(
        pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], prefix: str, wanted: int | None, key: str
    ) -> StoredSplit:
        x, y = pair
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        num = limited(len(x), wanted, key, str(folder))
        flat, shape = x.reshape(len(x), -1), (1, *size)
        return StoredSplit(
            flat, y, *names, in_order, num, num_classes, dtype, 1 / _LARGEST_PIXEL, shape
        )

    return Dataset(
        "mnist",
        split(train, "train", config.num_train, "num_train"),
        split(test, "t10k", config.num_test, "num_test"),
    )


def read_idx(file: Path, num_dims: int) -> NDArray[np.uint8]:
    """The bytes of one IDX file, uint8 of `num_dims` dims; an uncompressed file is mapped, not
    read.
    """
    try:
        content = _unzip(file) if file.suffix == ".gz" else _map(file)
    except OSError as error:
        raise DataError(f"{file} can't be read ({error}); make it readable") from None
    dims = _dims(file, content[: 4 + 4 * num_dims].tobytes(), num_dims)
    expected, found = 4 + 4 * num_dims + math.prod(dims), len(content)
    if found != expected:
        what = "is cut short" if found < expected else "is too long"
        raise DataError(
            f"{file} {what}: {_spell(dims)} values make {expected} bytes, but it has {found}; get "
            "the file again"
        )
    return np.asarray(content)[4 + 4 * num_dims :].reshape(dims)


def _dims(file: Path, header: bytes, num_dims: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * num_dims:
        raise DataError(
            f"{file} is cut short: the header alone has {4 + 4 * num_dims} bytes, it has "
            f"{len(header)}; get it again"
        )
    zeros, code, found_dims = struct.unpack_from(">HBB", header)
    if zeros != 0 or code not in _DTYPES:
        raise DataError(
            f"{file} is no IDX file: it begins with {header[:4].hex(' ')} in place of 00 00 08 "
            f"{num_dims:02x}"
        )
    if code != _UNSIGNED_BYTE or found_dims != num_dims:
        raise DataError(
            f"{file} holds {_DTYPES[code]} values in {found_dims} dims, but must hold uint8 in "
            f"{num_dims}; "
            "check that images and labels weren't swapped"
        )
    return struct.unpack_from(f">{num_dims}I", header, 4)


def _pair(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [samples, rows, columns] and labels of one split."""
    image_file, label_file = (
        _find(folder, f"{prefix}-images", 3),
        _find(folder, f"{prefix}-labels", 1),
    )
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels) or images.size == 0:
        raise DataError(
            f"{image_file} holds {_spell(images.shape)} values and {label_file} {len(labels)} "
            "labels; "
            "there must be one label an image, and at least one image"
        )
    return images, labels


def _find(folder: Path, stem: str, num_dims: int) -> Path:
    names = [f"{stem}{dot}idx{num_dims}-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder} holds no {names[0]} and no {names[1]}; put it there, or set data.path to the "
        "folder that has it"
    )


def _map(file: Path) -> NDArray[np.uint8]:
    """Nothing can be mapped of an empty file."""
    return np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)


def _unzip(file: Path) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{file} can't be unzipped ({error}); get the file again, or rename it if it isn't "
            "gzipped"
        ) from None


def _spell(dims: tuple[int, ...]) -> str:
    return " x ".join(map(str, dims))
