"""What to train on. The rules that a dataset's files must meet are in `dist_ml/datasets/`."""

from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError

# What is learned of a sample: its class, values, or the token that follows each of its tokens.
Task = Literal["classification", "regression", "next_token"]

_SMALLEST = {
    "num_train": 1,
    "num_test": 1,
    "test_every": 2,
    "num_features": 1,
    "num_outputs": 1,
    "teacher_width": 1,
    "num_tokens": 1,
    "stride": 1,
}
_LARGEST = {
    # an epoch of 2^40 samples takes 13 days at a million samples a second
    "num_train": 1 << 40,
    "num_test": 1 << 40,
    # the labels' sums stay exact in float64
    "num_features": 1 << 20,
    "teacher_width": 1 << 16,
    "num_tokens": 1 << 20,
}
_LARGEST_NOISE = 1e30  # what is added to values stays finite in float32


@dataclass(frozen=True)
class DataConfig:
    """One dataset; a field that the named dataset has no use for must stay null.

    Which names there are, and which fields each needs, `dist_ml.datasets.DATASETS` says.
    """

    name: str = "digits"  # which dataset: one of DATASETS
    # folder that holds the files (mnist, cifar, arrays), or a file (text; null = the packaged one)
    path: str | None = None
    # training samples to use: the first ones; null = all (synthetic: any number, and required)
    num_train: int | None = None
    num_test: int | None = None  # test samples to use, likewise
    # every how manieth sample is for testing (digits: of its class; arrays: if no test files)
    test_every: int | None = None
    num_features: int | None = None  # features of a sample (synthetic)
    # classes, or values to regress on (synthetic; arrays: classes, null = highest label + 1)
    num_outputs: int | None = None
    task: Literal["classification", "regression"] | None = None  # what the labels are (synthetic)
    # hidden units of the network that labels the samples (synthetic)
    teacher_width: int | None = None
    # classification: share of random labels; regression: standard deviation added (synthetic)
    noise: float | None = None
    # key of the samples and the teacher, apart from the training's own seed (synthetic)
    seed: int | None = None
    num_tokens: int | None = None  # bytes of a window, which are a sample (text)
    # bytes between the beginnings of two windows to train on; null = num_tokens (text)
    stride: int | None = None
    test_fraction: float | None = None  # share of the file, its end, that is for testing (text)

    def __post_init__(self) -> None:
        for field, smallest in _SMALLEST.items():
            value = getattr(self, field)
            if value is not None and value < smallest:
                raise ConfigError(f"{field}={value} is too small; it must be at least {smallest}")
        for field, largest in _LARGEST.items():
            value = getattr(self, field)
            if value is not None and value > largest:
                raise ConfigError(f"{field}={value} is too large; {_cost(field, value)}")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise ConfigError(
                f"test_fraction={self.test_fraction} is no share of the file; use one between 0 "
                "and 1, such as 0.1"
            )
        if self.task == "classification" and self.num_outputs == 1:
            raise ConfigError(
                "num_outputs=1 is too few classes to tell apart; set data.num_outputs=2 or more"
            )
        most = 1 if self.task == "classification" else _LARGEST_NOISE
        if self.noise is not None and not 0 <= self.noise <= most:
            raise ConfigError(
                f"noise={self.noise} is out of range; it must be 0 or more, and at most 1 for "
                f"classification (a share of labels) or {_LARGEST_NOISE:g} for regression"
            )


def _cost(field: str, value: int) -> str:
    limit = f"it must be at most {_LARGEST[field]}"
    if field not in ("num_train", "num_test"):
        return limit
    return f"a pass over them takes {value // 86_400_000_000} days at a million a second; {limit}"
