"""Endless samples with a known rule behind them: a fixed random network labels random features.

Sample i is a pure function of (seed, i), to the last bit: on any number of ranks, in any grouping,
on any machine. Sums in floating point depend on their order, and with it on the size of a batch; so
features and teacher weights are small odd whole numbers, whose products and sums the floating-point
format holds exactly, in whatever order they are added.

    features   odd, -255 … 255, uniform        8 random bits each
    first      odd, -15 … 15                   hidden = relu(first . features), float32
    second     odd, -15 … 15                   score  = second . hidden - mean score, float64
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_ml.config.data import DataConfig, Task
from dist_ml.counter_random import Words, bits, lanes, rows, stream, uniform
from dist_ml.datasets.dataset import NUMPY_DTYPES, Batch, Dataset, Ids
from dist_ml.errors import ConfigError
from dist_ml.measure.memory import physical_bytes, spell_bytes
from dist_ml.partition import pieces

NEEDS = (
    "num_train",
    "num_test",
    "num_features",
    "num_outputs",
    "task",
    "teacher_width",
    "noise",
    "seed",
)

_FEATURE_LIMIT, _WEIGHT_LIMIT = 255, 15
_EXACT_FEATURES = 2**24 // (
    _FEATURE_LIMIT * _WEIGHT_LIMIT
)  # float32 holds every whole number up to 2^24
_FEATURE_VARIANCE = (256**2 - 1) / 3  # of the odd numbers -255 … 255, all equally likely


@dataclass(frozen=True)
class Teacher:
    """The network behind the labels, in whole numbers held in floating point; see the module's
    table.
    """

    first: NDArray[np.float32]  # [features, width]
    second: NDArray[np.float64]  # [width, outputs]
    # [outputs], whole: about what `second . hidden` is on average, so that no class is preferred
    mean: NDArray[np.float64]
    scale: float  # brings the scores to a variance of about 1

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Exact whole numbers [b, outputs] for whole `features` [b, features]."""
        hidden = np.zeros((len(features), self.first.shape[1]), np.float64)
        for piece in pieces(len(self.first), _EXACT_FEATURES):
            hidden += features[:, piece.slice] @ self.first[piece.slice]
        np.maximum(hidden, 0, out=hidden)
        scores: NDArray[np.float64] = hidden @ self.second - self.mean
        return scores


@dataclass(frozen=True)
class SyntheticSplit:
    """Samples `first_id` … `first_id + num_samples - 1` of the endless sequence; nothing is
    stored.
    """

    teacher: Teacher
    seed: int
    first_id: int
    num_samples: int
    num_features: int
    num_outputs: int
    task: Task
    noise: float
    dtype: torch.dtype

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.num_features,)

    def batch(self, ids: Ids) -> Batch:
        sample_ids, ids = ids, ids + self.first_id
        keys = bits(stream("synthetic features", self.seed), ids)
        features = lanes(keys, self.num_features, np.uint8).astype(np.float32)
        features *= 2
        features -= _FEATURE_LIMIT
        scores = self.teacher.scores(features)
        y = (
            self._classes(scores, ids)
            if self.task == "classification"
            else self._values(scores, ids)
        )
        x = features.astype(NUMPY_DTYPES[self.dtype], copy=False)
        x *= 1 / math.sqrt(_FEATURE_VARIANCE)
        return Batch(torch.from_numpy(x), torch.from_numpy(y), sample_ids, len(ids))

    def _classes(self, scores: NDArray[np.float64], ids: Ids) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = scores.argmax(axis=1)
        if self.noise:
            mislabelled = uniform(stream("synthetic mislabelled", self.seed), ids) < self.noise
            anything = bits(stream("synthetic label", self.seed), ids) % np.uint64(self.num_outputs)
            labels[mislabelled] = anything[mislabelled].astype(np.int64)
        return labels

    def _values(self, scores: NDArray[np.float64], ids: Ids) -> NDArray[np.floating[Any]]:
        values = scores * self.teacher.scale
        if self.noise:
            words = rows(bits(stream("synthetic noise", self.seed), ids), self.num_outputs)
            values += ((words >> np.uint64(11)) * 2.0**-53 - 0.5) * (math.sqrt(12) * self.noise)
        return values.astype(NUMPY_DTYPES[self.dtype], copy=False)


def synthetic(config: DataConfig, dtype: torch.dtype) -> Dataset:
    """Test samples are those that follow the training samples. A batch of b costs 2 b num_features
    teacher_width operations.
    """
    sizes = (
        config.num_train,
        config.num_test,
        config.num_features,
        config.num_outputs,
        config.teacher_width,
        config.seed,
    )
    num_train, num_test, num_features, num_outputs, width, seed = (_set(size) for size in sizes)
    assert config.task is not None
    assert config.noise is not None
    _require_fits(num_features, width, num_outputs)
    teacher = make_teacher(seed, num_features, width, num_outputs)
    common = (num_features, num_outputs, config.task, config.noise, dtype)
    return Dataset(
        "synthetic",
        SyntheticSplit(teacher, seed, 0, num_train, *common),
        SyntheticSplit(teacher, seed, num_train, num_test, *common),
    )


def make_teacher(seed: int, num_features: int, width: int, num_outputs: int) -> Teacher:
    """Hidden unit j is nearly normal with variance v_j; relu makes its mean sqrt(v_j / 2 pi) and
    variance v_j (1/2 - 1/2 pi).
    """
    assert _FEATURE_LIMIT * _WEIGHT_LIMIT**2 * num_features * width < 2**53, (num_features, width)
    first = _weights(bits(stream("synthetic first", seed), np.arange(width)), num_features)
    second = _weights(bits(stream("synthetic second", seed), np.arange(num_outputs)), width)
    variances = [
        _FEATURE_VARIANCE * int(total)
        for total in (first.astype(np.int32) ** 2).sum(axis=1, dtype=np.int64)
    ]
    averages = [math.sqrt(v / (2 * math.pi)) for v in variances]
    means = [
        round(math.fsum(int(w) * average for w, average in zip(row, averages, strict=True)))
        for row in second
    ]
    spread = math.fsum(
        int(w) ** 2 * v for row in second for w, v in zip(row, variances, strict=True)
    ) * (0.5 - 0.5 / math.pi)
    return Teacher(
        np.ascontiguousarray(first.T, np.float32),
        np.ascontiguousarray(second.T, np.float64),
        np.array(means, np.float64),
        1 / math.sqrt(spread / num_outputs),
    )


def _require_fits(num_features: int, width: int, num_outputs: int) -> None:
    """The teacher's weights and what it takes to make them: 12 bytes each of the first layer's, 48
    of the second's, of which Python makes numbers.
    """
    needed, memory = 12 * num_features * width + 48 * width * num_outputs, physical_bytes()
    if needed > memory:
        raise ConfigError(
            f"data.num_features={num_features}, data.teacher_width={width} and "
            f"data.num_outputs={num_outputs} make a teacher that takes {spell_bytes(needed)}, but "
            f"this machine has {spell_bytes(memory)}; make one of them smaller"
        )


def _weights(keys: Words, width: int) -> NDArray[np.int8]:
    """Odd numbers -15 … 15, [len(keys), width]."""
    return (lanes(keys, width, np.uint8) % 16).astype(np.int8) * np.int8(2) - np.int8(_WEIGHT_LIMIT)


def _set(value: int | None) -> int:
    assert value is not None, "DataConfig checks what a synthetic dataset needs"
    return value
