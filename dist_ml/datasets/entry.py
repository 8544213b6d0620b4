"""What the family of datasets knows of each member."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from dist_ml.config.data import DataConfig
from dist_ml.datasets.dataset import Dataset

_OF_ALL = ("name", "num_train", "num_test")
_EXAMPLES = {
    "path": "FOLDER",
    "task": "classification",
    "noise": "0.0",
    "seed": "0",
    "test_fraction": "0.1",
}


@dataclass(frozen=True)
class Entry:
    """How a dataset is opened, and which fields of `DataConfig` it uses beside `num_train` and
    `num_test`.
    """

    open: Callable[[DataConfig, torch.dtype], Dataset]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()

    def uses(self, field: str) -> bool:
        return field in (*_OF_ALL, *self.needs, *self.takes)

    def unused(self, config: DataConfig) -> list[str]:
        """The fields that are set and have no meaning for this dataset."""
        names = [field.name for field in fields(config)]
        return [name for name in names if getattr(config, name) is not None and not self.uses(name)]

    def missing(self, config: DataConfig) -> list[str]:
        """The fields that must be set and aren't."""
        return [name for name in self.needs if getattr(config, name) is None]


def example(field: str) -> str:
    """A value of `field` that an error message may suggest."""
    return _EXAMPLES.get(field, "<a whole number>")
