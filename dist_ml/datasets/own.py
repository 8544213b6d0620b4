"""Samples that a user's program holds, as torch has them: anything with `len(samples)` and
`samples[i]`, a pair of input and target.
"""

import math
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import TensorDataset, default_collate

from dist_ml.config.data import Task
from dist_ml.datasets.dataset import Batch, Dataset, Ids
from dist_ml.errors import ConfigError, DataError

_PAIR = "a sample must be a pair (input, target) of tensors, arrays or numbers"


class OwnSplit:
    """One split. Floating values become `dtype`; `flat`: inputs as [b, num_features], as those of
    other datasets, else in the shape that they have.
    """

    def __init__(self, samples: Any, part: str, dtype: torch.dtype, flat: bool) -> None:
        self._samples, self._part, self._dtype, self._flat = samples, part, dtype, flat
        self.num_samples = _length(samples, part)
        inputs, self._targets = self._collate([0])
        self.sample_shape = tuple(inputs.shape[1:])
        self.num_features = math.prod(self.sample_shape)

    @property
    def task(self) -> Task:
        """What targets tell: values, a class, or a class for each element of the input.
        `ConfigError` where only a loss of the user's could say.
        """
        shape = tuple(self._targets.shape[1:])
        if self._targets.is_floating_point():
            return "regression"
        if not shape:
            return "classification"
        if shape == self.sample_shape:
            return "next_token"
        raise ConfigError(
            f"targets are whole numbers of shape {list(shape)} for inputs of "
            f"{list(self.sample_shape)}, which no loss here is for; hand in one: loss=callable"
        )

    @cached_property
    def num_outputs(self) -> int:
        """Values of a target, or the highest class + 1, for which all samples are read once."""
        if self._targets.is_floating_point():
            return math.prod(self._targets.shape[1:])
        parts = range(0, self.num_samples, 1024)
        ids = (range(start, min(start + 1024, self.num_samples)) for start in parts)
        return max(2, 1 + max(int(self._collate(list(part))[1].max()) for part in ids))

    def batch(self, ids: Ids) -> Batch:
        inputs, targets = self._collate(ids.tolist())
        if self._flat:
            inputs = inputs.flatten(1)
        num_items = len(ids) if targets.is_floating_point() else targets.numel()
        return Batch(inputs, targets, ids, num_items)

    def _collate(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if not ids:
            inputs, targets = self._collate([0])
            return inputs[:0], targets[:0]
        try:
            pair = self._fetch(ids)
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"samples {ids[0]} … of the {self._part} samples can't be joined: {reason}; "
                f"{_PAIR}, all of one shape"
            ) from error
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise ConfigError(f"the {self._part} samples are {type(pair).__name__}s; {_PAIR}")
        for value in pair:
            if not isinstance(value, torch.Tensor):
                raise ConfigError(
                    f"the {self._part} samples hold a {type(value).__name__}; {_PAIR}"
                )
        return self._in_dtype(pair[0]), self._in_dtype(pair[1])

    def _fetch(self, ids: list[int]) -> Any:
        if isinstance(self._samples, TensorDataset):
            return self._samples[ids]
        if hasattr(self._samples, "__getitems__"):
            return default_collate(self._samples.__getitems__(ids))
        return default_collate([self._samples[index] for index in ids])

    def _in_dtype(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._dtype) if values.is_floating_point() else values


def own_dataset(pair: Any, dtype: torch.dtype, flat: bool) -> Dataset:
    """Of (training samples, test samples); `ConfigError` for what can't be such."""
    if not (isinstance(pair, list | tuple) and len(pair) == 2):
        raise ConfigError(
            f"dataset must be (training samples, test samples), not a {type(pair).__name__}; "
            "torch.utils.data.random_split makes two of one"
        )
    train, test = (
        OwnSplit(samples, part, dtype, flat)
        for samples, part in zip(pair, ("training", "test"), strict=True)
    )
    if train.sample_shape != test.sample_shape:
        raise ConfigError(
            f"training samples are of shape {list(train.sample_shape)}, test samples of "
            f"{list(test.sample_shape)}; they must be of one"
        )
    return Dataset("own", train, test)


def _length(samples: Any, part: str) -> int:
    if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise ConfigError(
            f"the {part} samples are a {type(samples).__name__}, of which no sample can be asked "
            "for by number; give something with len() and [i], such as torch's TensorDataset"
        )
    if not len(samples):
        raise ConfigError(f"there are no {part} samples; give 1 or more")
    return len(samples)
