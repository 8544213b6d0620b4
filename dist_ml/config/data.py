"""What to train on. The rules that a dataset's files must meet are in `dist_ml/datasets/`."""

from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError

DatasetName = Literal["digits", "mnist", "arrays", "synthetic"]
Task = Literal["classification", "regression"]

_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "path": ("mnist", "arrays"),
    "test_every": ("digits", "arrays"),
    "num_features": ("synthetic",),
    "num_outputs": ("arrays", "synthetic"),
    "task": ("synthetic",),
    "teacher_width": ("synthetic",),
    "noise": ("synthetic",),
    "seed": ("synthetic",),
}
_NEEDED_BY: dict[str, tuple[str, ...]] = {
    "digits": ("test_every",),
    "mnist": ("path",),
    "arrays": ("path",),
    "synthetic": (
        "num_train",
        "num_test",
        "num_features",
        "num_outputs",
        "task",
        "teacher_width",
        "noise",
        "seed",
    ),
}
_SMALLEST = {
    "num_train": 1,
    "num_test": 1,
    "test_every": 2,
    "num_features": 1,
    "num_outputs": 1,
    "teacher_width": 1,
}
_LARGEST_SYNTHETIC = {
    "num_features": 1 << 20,
    "teacher_width": 1 << 16,
}  # the labels' sums stay exact in float64


@dataclass(frozen=True)
class DataConfig:
    """One dataset; a field that the named dataset has no use for must stay null."""

    name: DatasetName = "digits"  # which dataset
    path: str | None = None  # folder that holds the files (mnist, arrays)
    num_train: int | None = (
        # training samples to use: the first ones; null = all (synthetic: any number, and required)
        None
    )
    num_test: int | None = None  # test samples to use, likewise
    test_every: int | None = (
        # every how manieth sample is for testing (digits: of its class; arrays: if no test files)
        None
    )
    num_features: int | None = None  # features of a sample (synthetic)
    num_outputs: int | None = (
        # classes, or values to regress on (synthetic; arrays: classes, null = highest label + 1)
        None
    )
    task: Task | None = None  # what the labels are (synthetic)
    # hidden units of the network that labels the samples (synthetic)
    teacher_width: int | None = None
    noise: float | None = (
        # classification: share of random labels; regression: standard deviation added (synthetic)
        None
    )
    # key of the samples and the teacher, apart from the training's own seed (synthetic)
    seed: int | None = None

    def __post_init__(self) -> None:
        for field, names in _ONLY_FOR.items():
            value = getattr(self, field)
            if value is not None and self.name not in names:
                raise ConfigError(
                    f"{field}={value} has no meaning for data={self.name}; leave it out, or use "
                    f"data={names[0]}"
                )
        for field in _NEEDED_BY[self.name]:
            if getattr(self, field) is None:
                raise ConfigError(
                    f"{field}=null is not enough for data={self.name}; set "
                    f"data.{field}={_example(field)}"
                )
        for field, smallest in _SMALLEST.items():
            value = getattr(self, field)
            if value is not None and value < smallest:
                raise ConfigError(f"{field}={value} is too small; it must be at least {smallest}")
        self._check_synthetic()

    def _check_synthetic(self) -> None:
        if self.task == "classification" and self.num_outputs == 1:
            raise ConfigError(
                "num_outputs=1 is too few classes to tell apart; set data.num_outputs=2 or more"
            )
        if self.noise is not None and not 0 <= self.noise <= (
            1 if self.task == "classification" else float("inf")
        ):
            raise ConfigError(
                f"noise={self.noise} is out of range; 0 or more, and at most 1 for classification "
                "(a share of labels)"
            )
        if self.name == "synthetic":
            for field, largest in _LARGEST_SYNTHETIC.items():
                if getattr(self, field) > largest:
                    raise ConfigError(
                        f"{field}={getattr(self, field)} is too large; it must be at most {largest}"
                    )


def _example(field: str) -> str:
    return {"path": "FOLDER", "task": "classification", "noise": "0.0", "seed": "0"}.get(
        field, "<a whole number>"
    )
