"""What a model is told of the samples that it is made for."""

import math
from typing import NamedTuple

from dist_ml.config.data import Task


class Samples(NamedTuple):
    """`shape`: of one sample: (features,), (channels, height, width), or (tokens,). Batches hold
    them flat, [b, num_features].
    """

    shape: tuple[int, ...]
    num_outputs: int  # classes, values to regress on, or tokens that there are
    task: Task = "classification"

    @property
    def num_features(self) -> int:
        return math.prod(self.shape)

    @property
    def items(self) -> int:
        """What a loss sums over in each sample: itself, or its tokens."""
        return self.num_features if self.task == "next_token" else 1
