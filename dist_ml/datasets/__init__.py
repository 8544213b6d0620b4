"""Datasets by name. Every sample has a global id; which rank sees which is the sampler's to say."""

from collections.abc import Callable

import torch

from dist_ml.config.data import DataConfig
from dist_ml.config.names import require_one_of
from dist_ml.datasets.arrays import arrays
from dist_ml.datasets.dataset import Batch, Dataset, Ids, Split
from dist_ml.datasets.digits import digits
from dist_ml.datasets.mnist import mnist
from dist_ml.datasets.synthetic import synthetic

DATASETS: dict[str, Callable[[DataConfig, torch.dtype], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "arrays": arrays,
    "synthetic": synthetic,
}

__all__ = ["DATASETS", "Batch", "Dataset", "Ids", "Split", "open_dataset"]


def open_dataset(config: DataConfig, dtype: torch.dtype = torch.float32) -> Dataset:
    """The dataset that `config` names, with x (and y to regress on) in `dtype`: float32 or
    float64.
    """
    require_one_of("data.name", config.name, DATASETS)
    return DATASETS[config.name](config, dtype)
