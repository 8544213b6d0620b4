"""Datasets by name. Every sample has a global id; which rank sees which is the sampler's to say."""

import torch

from dist_ml.config.data import DataConfig
from dist_ml.config.names import require_one_of
from dist_ml.datasets import synthetic
from dist_ml.datasets.arrays import arrays
from dist_ml.datasets.cifar import cifar
from dist_ml.datasets.dataset import Batch, Dataset, Ids, Split
from dist_ml.datasets.digits import digits
from dist_ml.datasets.entry import Entry, example
from dist_ml.datasets.mnist import mnist
from dist_ml.datasets.text import text
from dist_ml.errors import ConfigError

DATASETS: dict[str, Entry] = {
    "digits": Entry(digits, needs=("test_every",)),
    "mnist": Entry(mnist, needs=("path",)),
    "cifar": Entry(cifar, needs=("path",)),
    "arrays": Entry(arrays, needs=("path",), takes=("test_every", "num_outputs")),
    "text": Entry(text, needs=("num_tokens", "test_fraction"), takes=("path", "stride")),
    "synthetic": Entry(synthetic.synthetic, needs=synthetic.NEEDS),
}

__all__ = ["DATASETS", "Batch", "Dataset", "Entry", "Ids", "Split", "open_dataset"]


def open_dataset(config: DataConfig, dtype: torch.dtype = torch.float32) -> Dataset:
    """The dataset that `config` names, with inputs (and values to regress on) in `dtype`: float32
    or float64. `ConfigError` for a name or a field that has no meaning, `DataError` for bad files.
    """
    require_one_of("data.name", config.name, DATASETS)
    entry = DATASETS[config.name]
    for field in entry.unused(config):
        users = [name for name, other in DATASETS.items() if other.uses(field)]
        raise ConfigError(
            f"data.{field}={getattr(config, field)} has no meaning for data={config.name}; leave "
            f"it out, or use data={users[0]}"
        )
    for field in entry.missing(config):
        raise ConfigError(
            f"data.{field}=null is not enough for data={config.name}; set "
            f"data.{field}={example(field)}"
        )
    return entry.open(config, dtype)
