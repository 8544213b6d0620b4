"""The ranks' part of `dist-ml bench sparse_accuracy`: settings are chosen on samples held out of
the training split; what is reported is trained on all of it and tested on the test split.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.train import TrainConfig
from dist_ml.datasets import open_dataset
from dist_ml.train.build import build_mesh, build_trainer

DENSE = "dense"


@dataclass(frozen=True)
class Setting:
    """How what waits is remembered, and which densities come first."""

    momentum: float  # momentum correction, in place of the optimizer's momentum; 0: left to that
    factor_masking: bool
    warmup_densities: tuple[float, ...]  # those above the variant's own density are used

    def of(self, variant: SparseConfig) -> SparseConfig:
        """`variant` with this setting."""
        above = tuple(each for each in self.warmup_densities if each > variant.density)
        return dataclasses.replace(
            variant,
            momentum=self.momentum,
            factor_masking=self.factor_masking,
            warmup_densities=above,
        )


@dataclass(frozen=True)
class SparseTask:
    """What is trained, and for how long."""

    data: DataConfig
    epochs: int
    batch_size: int

    def of(self, train: TrainConfig) -> TrainConfig:
        return dataclasses.replace(
            train, data=self.data, epochs=self.epochs, batch_size=self.batch_size
        )


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Test accuracy, steps and density of all elements, by candidate and seed."""
    train = from_mapping(TrainConfig, arguments["train"])
    return _by_candidate(comm, train, {DENSE: SparseConfig(), **_variants(arguments)}, arguments)


def choose(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The same on the training split alone, of which every `validation_every`-th sample is tested
    on, and is not trained on.
    """
    train = from_mapping(TrainConfig, arguments["train"])
    with _training_split(comm, train, arguments["validation_every"]) as data:
        config = dataclasses.replace(train, data=data)
        return _by_candidate(comm, config, _variants(arguments), arguments)


def _variants(arguments: Mapping[str, Any]) -> dict[str, SparseConfig]:
    return {label: from_mapping(SparseConfig, each) for label, each in arguments["sparse"].items()}


@contextmanager
def _training_split(comm: Communicator, train: TrainConfig, every: int) -> Iterator[DataConfig]:
    """Files with the training samples of `train` and no others, as long as they are needed."""
    folder = tempfile.mkdtemp(prefix="dist_ml-bench-") if comm.rank == 0 else ""
    path = Path(comm.broadcast_object(folder))
    if comm.rank == 0:
        split = open_dataset(train.data, torch.float32).train
        batch = split.batch(np.arange(split.num_samples, dtype=np.int64))
        np.save(path / "train_x.npy", batch.inputs.numpy())
        np.save(path / "train_y.npy", batch.targets.numpy())
    comm.barrier()
    try:
        yield DataConfig(name="arrays", path=str(path), test_every=every)
    finally:
        comm.barrier()
        if comm.rank == 0:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def with_sparse(train: TrainConfig, sparse: SparseConfig) -> TrainConfig:
    """`train` with these gradients; momentum correction takes the optimizer's momentum over."""
    momentum = 0.0 if sparse.momentum else train.optimizer.momentum
    return dataclasses.replace(
        train, sparse=sparse, optimizer=dataclasses.replace(train.optimizer, momentum=momentum)
    )


def _by_candidate(
    comm: Communicator,
    train: TrainConfig,
    candidates: Mapping[str, SparseConfig],
    arguments: Mapping[str, Any],
) -> dict[str, list[dict[str, float]]]:
    """A run for each candidate and seed. Each warm-up density lasts `warmup_share` of all steps."""
    dense = build_trainer(train, build_mesh(train, comm))
    steps = train.epochs * dense.sampler.steps_per_epoch
    dense.close()
    each = max(1, round(arguments["warmup_share"] * steps))
    timed = {
        label: dataclasses.replace(sparse, warmup_steps=each) if sparse.warmup_densities else sparse
        for label, sparse in candidates.items()
    }
    return {
        label: [_trained(comm, train, sparse, seed) for seed in arguments["seeds"]]
        for label, sparse in timed.items()
    }


def _trained(
    comm: Communicator, train: TrainConfig, sparse: SparseConfig, seed: int
) -> dict[str, float]:
    """One run. Its density is of all elements, those that always go densely included."""
    config = dataclasses.replace(with_sparse(train, sparse), seed=seed)
    trainer = build_trainer(config, build_mesh(config, comm))
    sizes = [parameter.numel() for parameter in trainer.model.parameters()]
    small = sum(size for size in sizes if size < sparse.dense_below) / sum(sizes)
    densities = []
    for epoch in range(config.epochs):
        for _ in trainer.epoch(epoch):
            sent = trainer.diagnostics().get("density_sent", 1.0)
            densities.append(small + (1 - small) * sent)
    accuracy = trainer.evaluate(trainer.dataset.test).accuracy
    assert accuracy is not None
    trainer.close()
    return {
        "accuracy": accuracy,
        "steps": len(densities),
        "density": statistics.mean(densities),
        "elements": sum(sizes),
    }
