"""What tests of training are made of: samples in memory, a small configuration, and a step whose
reference is a softmax regression in plain numpy.
"""

import dataclasses
from typing import Any

import numpy as np
import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig, Task
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import (
    CommConfig,
    LRScheduleConfig,
    MeshConfig,
    OptimizerConfig,
    TrackerConfig,
    TrainConfig,
)
from dist_ml.data_parallel.dense_reducer import DenseReducer
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets.dataset import Batch, Ids
from dist_ml.measure.timer import Phases
from dist_ml.models import MLP, choose_objective
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.schedule import one_stage
from dist_ml.train.guard import Guard, Nonfinite
from dist_ml.train.local_stage import LocalStage
from dist_ml.train.optimizer import build_lr_schedule
from dist_ml.train.step import TrainStep, num_slots
from dist_ml.train.step_batches import StepBatches
from dist_ml.train.updater import Updater

FEATURES, CLASSES = 5, 3
CONFIG = TrainConfig(
    name="small",
    folder="nowhere",
    seed=3,
    ranks=None,
    epochs=2,
    batch_size=12,
    accumulation=1,
    precision="fp64",
    clip_norm=None,
    nonfinite="stop",
    log_every=1,
    evaluate_every=1,
    mesh=MeshConfig(None, 1, 1),
    model=ModelConfig(hidden=(6,), activation="tanh"),
    data=DataConfig(
        "synthetic",
        num_train=30,
        num_test=17,
        num_features=FEATURES,
        num_outputs=CLASSES,
        task="classification",
        teacher_width=4,
        noise=0.0,
        seed=1,
    ),
    optimizer=OptimizerConfig("sgd", lr=0.1, weight_decay=0.0, momentum=0.5),
    lr_schedule=LRScheduleConfig("cosine", warmup_fraction=0.2),
    comm=CommConfig(checked=False, timing=False),
    tracker=TrackerConfig(tensorboard=False, mlflow=False),
)


def changed(**changes: Any) -> TrainConfig:
    """The small configuration with other values; a mapping changes fields of a group."""
    groups = {
        key: dataclasses.replace(getattr(CONFIG, key), **value)
        if isinstance(value, dict)
        else value
        for key, value in changes.items()
    }
    return dataclasses.replace(CONFIG, **groups)


class Points:
    """A split of `num` random samples; what is not finite can be put into `inputs`."""

    num_features = FEATURES

    def __init__(self, num: int, task: Task = "classification", seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.num_samples, self.task, self.num_outputs = num, task, CLASSES
        self.inputs = torch.from_numpy(random.standard_normal((num, FEATURES)))
        self.targets = torch.from_numpy(
            random.integers(0, CLASSES, num)
            if task == "classification"
            else random.standard_normal((num, CLASSES))
        )

    def batch(self, ids: Ids) -> Batch:
        where = torch.from_numpy(ids)
        return Batch(self.inputs[where].clone(), self.targets[where].clone(), ids, len(ids))


class Steps:
    """The parts of a training step of a linear model on one rank, by hand."""

    def __init__(
        self,
        comm: Communicator,
        split: Points,
        batch_size: int,
        num_microbatches: int = 1,
        nonfinite: Nonfinite = "stop",
        lr: float = 0.5,
    ) -> None:
        self.model = MLP((FEATURES, CLASSES), seed=7, dtype=torch.float64)
        self.objective = choose_objective(ModelConfig(), "classification")
        self.sampler = GlobalSampler(split.num_samples, batch_size, seed=5)
        gradients = FlatGradients(self.model.parameters(), num_slots(self.objective))
        self.reducer = DenseReducer(gradients, family.make("ring", comm))
        self.phases = Phases()
        batches = StepBatches(
            self.model,
            self.objective,
            split,
            self.sampler,
            comm,
            num_microbatches,
            self.reducer.slots_of,
        )
        stage = LocalStage(
            self.model, batches, self.reducer, self.phases, num_microbatches, autocast=False
        )
        executor = Executor(
            one_stage(num_microbatches).actions[0], {"F": stage.forward, "B": stage.backward}
        )
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        lr_schedule = build_lr_schedule(
            LRScheduleConfig("cosine", warmup_fraction=0.0), optimizer, num_steps=20
        )
        self.updater = Updater(optimizer, lr_schedule)
        guard = Guard(comm, None, nonfinite)
        self.train_step = TrainStep(executor, stage, self.reducer, guard, self.updater, self.phases)

    @property
    def parameters(self) -> np.ndarray:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).numpy()


def regression_step(
    parameters: np.ndarray, x: np.ndarray, classes: np.ndarray, lr: float
) -> tuple[np.ndarray, float, int]:
    """A step of softmax regression written out: next parameters, mean loss, right answers."""
    weight = parameters[: FEATURES * CLASSES].reshape(CLASSES, FEATURES)
    outputs = x @ weight.T + parameters[FEATURES * CLASSES :]
    exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
    shares = exponentials / exponentials.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = float(-np.log(shares[rows, classes]).mean())
    correct = int((outputs.argmax(1) == classes).sum())
    shares[rows, classes] -= 1
    gradient = np.concatenate([(shares.T @ x).ravel(), shares.sum(0)]) / len(x)
    return parameters - lr * gradient, loss, correct
