"""What a model is trained for: the loss, what else is told of a batch, and what sums are divided
by.

Everything is a sum over items: whoever knows the size of the global batch divides by it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import mse_loss, one_hot

from dist_ml.config.data import Task
from dist_ml.config.model import ModelConfig
from dist_ml.config.names import require_one_of
from dist_ml.errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Metrics = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Objective:
    """A loss with its metrics.

    `loss_sum(outputs, targets)` is the sum over the items of a batch, and so is each of
    `metric_sums`, in the order of `metric_names`. A sample counts as `items_per_sample` items
    (1; the tokens of a text). `bytewise`: items are bytes, so that the loss can be told in bits
    of each.
    """

    loss_sum: Loss
    metric_names: tuple[str, ...] = ()
    metric_sums: Metrics = lambda _outputs, _targets: ()
    items_per_sample: int = 1
    bytewise: bool = False

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A batch's loss, differentiable, and its metrics: `num_slots` sums."""
        return self.loss_sum(outputs, targets), *self.metric_sums(outputs.detach(), targets)

    def whole(self, outputs: torch.Tensor) -> torch.Tensor:
        """The model's whole outputs, where ranks hold parts of them. Collective there."""
        return outputs

    @property
    def num_slots(self) -> int:
        """Sums that every step reduces over the ranks: the loss and each metric."""
        return 1 + len(self.metric_names)


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over items of -log softmax(outputs)[target]; outputs [..., classes], int64 [...]."""
    return torch_cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum")


def mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over samples of the mean squared error of their outputs; targets [b, outputs], or int64
    [b] classes, taken as 0 and 1.
    """
    if not targets.is_floating_point():
        targets = one_hot(targets, outputs.shape[1])
    return mse_loss(outputs, targets.to(outputs.dtype), reduction="sum") / outputs.shape[1]


def num_correct(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
    """Items whose largest output is their class: outputs [..., classes], int64 [...]."""
    return ((outputs.argmax(-1) == targets).sum(),)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def choose_objective(config: ModelConfig, task: Task, items_per_sample: int = 1) -> Objective:
    """The configured loss, or else the usual one for the task; `ConfigError` where it can't be had.

    Where there are classes (a next token is one), those that are found right are counted, too, as
    `correct`.
    """
    name = config.loss or ("mse" if task == "regression" else "cross_entropy")
    require_one_of("model.loss", name, LOSSES)
    if name == "cross_entropy" and task == "regression":
        raise ConfigError(
            "model.loss=cross_entropy needs classes, but the data has values to regress on; set "
            "model.loss=mse"
        )
    if task == "next_token":
        if name != "cross_entropy":
            raise ConfigError(
                f"model.loss={name} can't tell which token comes next; set model.loss=cross_entropy"
            )
        return Objective(LOSSES[name], ("correct",), num_correct, items_per_sample, bytewise=True)
    if task == "classification":
        return Objective(LOSSES[name], ("correct",), num_correct)
    return Objective(LOSSES[name])
