"""PipeDream-2BW's update by a plain loop over a whole model, which keeps the weights of the step
before: what a pipeline under that schedule is held against. Nothing here knows stages.

    W(t+1) = what the optimizer makes of W(t) with the gradient of batch t at W(t-1);  W(-1) = W(0)
"""

from typing import NamedTuple

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.models import BlockModel, forward
from dist_ml.train.assemble import build_evaluator
from dist_ml.train.build import build_mesh, build_task
from dist_ml.train.evaluator import Evaluation
from dist_ml.train.optimizer import build_lr_schedule, build_optimizer


class Delayed(NamedTuple):
    """What such a run comes to."""

    losses: list[float]  # of each batch at the weights that it passed through
    metrics: list[tuple[float, ...]]  # sums over each batch
    model: BlockModel  # with the newest weights
    evaluation: Evaluation  # of them, on the test samples


def train_delayed(config: TrainConfig, num_steps: int) -> Delayed:
    """`num_steps` steps in this process; `config` is of one rank, in fp32 or fp64."""
    mesh = build_mesh(config, Communicator(Loopback()))
    dataset, model, objective = task = build_task(config, mesh)
    sampler = GlobalSampler(dataset.train.num_samples, config.batch_size, config.seed)
    parameters = list(model.parameters())
    optimizer = build_optimizer(config.optimizer, parameters)
    an_epoch = sampler.steps_per_epoch
    lr_schedule = build_lr_schedule(config.lr_schedule, optimizer, config.epochs * an_epoch)
    older = _copy(parameters)
    losses, sums = [], []
    for number in range(num_steps):
        ids = sampler.batch(*divmod(number, an_epoch))
        batch = dataset.train.batch(ids)
        newer = _copy(parameters)
        _fill(parameters, older)
        model.context.set(number, ids)
        outputs = forward(model, batch.inputs, autocast=False)
        loss_sum, *metrics = objective.sums(outputs, batch.targets)
        loss = loss_sum / (len(ids) * objective.items_per_sample)
        gradients = torch.autograd.grad(loss, parameters)
        _fill(parameters, newer)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        lr_schedule.step()
        older = newer
        losses.append(loss.item())
        sums.append(tuple(float(value) for value in metrics))
    evaluation = build_evaluator(config, mesh, task).evaluate(dataset.test)
    return Delayed(losses, sums, model, evaluation)


def _copy(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _fill(parameters: list[torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
