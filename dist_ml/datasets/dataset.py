"""What every dataset gives: two splits whose samples are asked for by number."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import Task

Ids = NDArray[np.int64]

NUMPY_DTYPES: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}


class Batch(NamedTuple):
    """Samples together, in tensors that the caller owns."""

    inputs: torch.Tensor  # [b, num_features], in the split's floating dtype
    targets: torch.Tensor  # int64 [b] classes, or [b, num_outputs] values in that dtype
    sample_ids: Ids  # int64 [b]
    num_items: int  # that a loss sums over: samples, or the tokens of samples


class Split(Protocol):
    """Samples 0 … num_samples-1 of one task. Any rank may ask for any sample; nothing is dealt out
    here.
    """

    @property
    def num_samples(self) -> int: ...

    @property
    def num_features(self) -> int:
        """The product of `sample_shape`."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample: (features,), or (channels, height, width)."""
        ...

    @property
    def num_outputs(self) -> int:
        """Classes (classification) or values a sample (regression)."""
        ...

    @property
    def task(self) -> Task: ...

    def batch(self, ids: Ids) -> Batch:
        """The samples `ids`: int64 [b], each in 0 … num_samples-1, in any order.

        A sample is the same in whatever company it is asked for. Raises `DataError` where a file
        holds unusable values.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """The samples to train on and, apart from them, the samples to test on; both of one task and
    shape.
    """

    name: str
    train: Split
    test: Split
