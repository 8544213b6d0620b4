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

    # [b, num_features], in the split's floating dtype; tokens of a text are int64
    inputs: torch.Tensor
    # int64 [b] classes, [b, num_outputs] values in that dtype, or int64 [b, num_tokens] next tokens
    targets: torch.Tensor
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
        """Of one sample: (features,), (channels, height, width), or (tokens,)."""
        ...

    @property
    def num_outputs(self) -> int:
        """Classes (classification), values a sample (regression), or tokens that there are."""
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
