"""What a user's program hands to the trainer, in the place of what a configuration names."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.mesh import Mesh
from dist_ml.config.data import DataConfig
from dist_ml.config.names import OWN
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.module_checks import require_alike, require_exchangeable
from dist_ml.data_parallel.same_values import equalise
from dist_ml.datasets import Dataset, open_dataset
from dist_ml.datasets.own import own_dataset
from dist_ml.errors import ConfigError
from dist_ml.models import BlockModel, Objective, Samples, choose_objective
from dist_ml.models.objective import Loss
from dist_ml.models.own import Named, OwnBlocks, OwnModule


class Own(NamedTuple):
    """`model`: a module, or (name, module) for each of its blocks, the same on every rank;
    `dataset`: training and test samples; `loss(outputs, targets)`: a sum over a batch's samples.
    """

    model: torch.nn.Module | Named | None = None
    dataset: Any = None
    loss: Loss | None = None

    def check(self, config: TrainConfig, mesh_sizes: Mapping[str, int]) -> None:
        """`ConfigError` for a configuration that names what was handed in, or that what was handed
        in can't serve.
        """
        for key, name, value in (
            ("model", config.model.name, self.model),
            ("data", config.data.name, self.dataset),
        ):
            if name == OWN and value is None:
                raise ConfigError(
                    f"{key}={OWN} is what a program of your own hands in; start that program, or "
                    f"choose another {key}"
                )
            if name != OWN and value is not None:
                raise ConfigError(
                    f"{key}={name} has no effect beside the {key} that was handed in; leave one out"
                )
        if self.loss is not None and config.model.loss is not None:
            raise ConfigError(
                f"model.loss={config.model.loss} has no effect beside the loss that was handed in; "
                "leave one out"
            )
        if self.dataset is not None and config.data != DataConfig(OWN):
            raise ConfigError(
                "data.* has no effect on samples that were handed in; leave its keys out"
            )
        if self.model is not None:
            _check_model(self.model, config, mesh_sizes)

    def open(self, config: TrainConfig, dtype: torch.dtype) -> Dataset:
        """The samples to train and test on. No communication."""
        if self.dataset is None:
            return open_dataset(config.data, dtype)
        return own_dataset(self.dataset, dtype, flat=self.model is None)

    def blocks(self, mesh: Mesh, seed: int, dtype: torch.dtype) -> BlockModel:
        """The model that was handed in, with rank 0's values on all ranks; without any yet where
        the mesh has a pipeline. Collective; `ConfigError` on all ranks where theirs differ.
        """
        assert self.model is not None
        whole = isinstance(self.model, torch.nn.Module)
        with raise_on_all_ranks(mesh.world):
            model = OwnModule(self.model, seed) if whole else OwnBlocks(self.model, seed)  # type: ignore[arg-type]
            require_exchangeable(model)
            model.to(dtype)
        require_alike(model, mesh.world)
        equalise(chain(model.parameters(), model.buffers()), mesh.world)
        if isinstance(model, OwnBlocks) and mesh.sizes["pipeline"] > 1:
            model.let_go()
        return model

    def objective(self, config: TrainConfig, dataset: Dataset) -> Objective:
        """The loss that was handed in, or the configured one."""
        if self.loss is not None:
            return Objective(self.loss)
        train = dataset.train
        if self.dataset is None:
            samples = Samples(train.sample_shape, train.num_outputs, train.task)
            return choose_objective(config.model, train.task, samples.items)
        items = train.num_features if train.task == "next_token" else 1
        return dataclasses.replace(
            choose_objective(config.model, train.task, items), bytewise=False
        )


def _check_model(
    model: torch.nn.Module | Sequence[Any], config: TrainConfig, mesh_sizes: Mapping[str, int]
) -> None:
    if mesh_sizes["operator"] > 1:
        raise ConfigError(
            f"mesh.operator={mesh_sizes['operator']} cuts layers that a model of ours asks for; "
            "one that was handed in has its own: use mesh.operator=1"
        )
    if config.kernel != "torch":
        raise ConfigError(
            f"kernel={config.kernel} has no effect on the layers of a model that was handed in; "
            "use kernel=torch"
        )
    if isinstance(model, torch.nn.Module):
        if mesh_sizes["pipeline"] > 1:
            raise ConfigError(
                f"mesh.pipeline={mesh_sizes['pipeline']} needs blocks to cut between, and one "
                "module was handed in; hand in model=[(name, module), …], or use mesh.pipeline=1"
            )
    elif not isinstance(model, Sequence) or isinstance(model, str):
        raise ConfigError(
            f"model is a {type(model).__name__}; hand in a torch.nn.Module, or [(name, module), …]"
        )
    else:
        for entry in model:
            if not (isinstance(entry, tuple) and len(entry) == 2):
                raise ConfigError(f"model holds {entry!r}; each block is a pair (name, module)")
