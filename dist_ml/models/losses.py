"""Losses, as sums over samples: whoever knows the size of the global batch divides by it."""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import mse_loss, one_hot

from dist_ml.config.data import Task
from dist_ml.config.model import LossName, ModelConfig
from dist_ml.errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum over samples of -log softmax(outputs)[y]; outputs [b, classes], y int64 [b]."""
    return torch_cross_entropy(outputs, y, reduction="sum")


def mse(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum over samples of the mean squared error of their outputs; y [b, outputs], or int64 [b]
    classes, taken as 0 and 1.
    """
    if not y.is_floating_point():
        y = one_hot(y, outputs.shape[1])
    return mse_loss(outputs, y.to(outputs.dtype), reduction="sum") / outputs.shape[1]


LOSSES: dict[LossName, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def choose_loss(config: ModelConfig, task: Task) -> Loss:
    """The configured loss, or else the usual one for the task; `ConfigError` where it can't be had
    for the task.
    """
    if config.loss == "cross_entropy" and task == "regression":
        raise ConfigError(
            "model.loss=cross_entropy needs classes, but the data has values to regress on; set "
            "model.loss=mse"
        )
    return LOSSES[config.loss or ("cross_entropy" if task == "classification" else "mse")]
