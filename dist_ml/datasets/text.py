"""Text, byte by byte: what comes next, in a file of any kind or in the one that is packaged
(`TEXT.md` has origin and licence).

    bytes     ├──────────────── training ────────────────┤├──── testing ────┤
    windows   ├─ sample 0 ─┤├─ sample 1 ─┤ …               ├─ sample 0 ─┤ …

A sample is a window of `data.num_tokens` bytes, its targets are the bytes one place further on. The
last `data.test_fraction` of the file is for testing, so that no byte of it is ever trained on.
"""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import DataConfig, Task
from dist_ml.datasets.dataset import Batch, Dataset, Ids
from dist_ml.datasets.stored import limited
from dist_ml.errors import DataError

NUM_BYTES = 256  # values that a byte can have: the vocabulary
_FILE = "alice.txt"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class TextSplit:
    """Sample i is the bytes i stride … i stride + num_tokens - 1 of `text`; only what is asked for
    is read.
    """

    text: Bytes
    num_tokens: int
    stride: int
    num_samples: int
    task: Task = "next_token"
    num_outputs: int = NUM_BYTES

    @property
    def num_features(self) -> int:
        return self.num_tokens

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.num_tokens,)

    def batch(self, ids: Ids) -> Batch:
        """Inputs and targets are int64 [b, num_tokens]."""
        places = ids[:, None] * self.stride + np.arange(self.num_tokens + 1, dtype=np.int64)
        window = torch.from_numpy(self.text[places].astype(np.int64))
        inputs, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        return Batch(inputs, targets, ids, inputs.numel())


def text(config: DataConfig, dtype: torch.dtype) -> Dataset:  # noqa: ARG001
    """Training windows begin every `data.stride` bytes (null: where the one before ends); those to
    test on never overlap, so that each byte counts once.
    """
    assert config.num_tokens is not None
    assert config.test_fraction is not None
    length = config.num_tokens
    where, content = _read(config.path)
    num_test = int(len(content) * config.test_fraction)
    cut = len(content) - num_test
    for part, size in (("train", cut), ("test", num_test)):
        if size <= length:
            raise DataError(
                f"{where} has {len(content)} bytes, of which data.test_fraction="
                f"{config.test_fraction:g} leaves {size} to {part} on, but a window of "
                f"data.num_tokens={length} and the byte after it take {length + 1}; use a "
                "longer file, or a smaller data.num_tokens"
            )

    def split(part: Bytes, stride: int, wanted: int | None, key: str) -> TextSplit:
        available = (len(part) - length - 1) // stride + 1
        num = limited(available, wanted, key, where)
        return TextSplit(part, length, stride, num)

    stride = config.stride or length
    return Dataset(
        "text",
        split(content[:cut], stride, config.num_train, "num_train"),
        split(content[cut:], length, config.num_test, "num_test"),
    )


def _read(path: str | None) -> tuple[str, Bytes]:
    """What to call the file, and its bytes: mapped, where it is the user's own."""
    if path is None:
        file = importlib.resources.files("dist_ml.datasets") / _FILE
        return _FILE, np.frombuffer(file.read_bytes(), np.uint8)
    try:
        if Path(path).is_dir():
            raise DataError(f"data.path={path} is a folder; give the file that holds the text")
        if Path(path).stat().st_size == 0:
            raise DataError(f"data.path={path} is empty; give a file that holds text")
        return path, np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        raise DataError(
            f"data.path={path} does not exist; give a file, or leave data.path out for the text "
            "that is packaged"
        ) from None
    except (OSError, ValueError) as error:  # also a name that can't be one
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data.path={path} can't be read ({reason}); make it readable") from None
