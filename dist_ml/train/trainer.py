"""The training step, and the passes over the data that are made of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from dist_ml import partition
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.data_parallel.sharded import TransientGradients
from dist_ml.datasets.dataset import Dataset, Ids, Split
from dist_ml.errors import NonFiniteError
from dist_ml.measure.timer import Phases
from dist_ml.models import MLP, Loss
from dist_ml.models.dropout import Keys


@dataclass(frozen=True)
class Rules:
    """What a step must do beside the mathematics."""

    accumulation: int  # pieces that a rank's share is computed in
    autocast: bool  # bfloat16 products, with parameters and gradients in their own dtype
    clip_norm: float | None  # largest Euclidean norm of the global gradient
    nonfinite: Literal["stop", "skip"]


@dataclass(frozen=True)
class Step:
    """What one step did; the same on all ranks."""

    number: int  # optimizer steps before this one, from the start of the run
    epoch: int
    num_samples: int  # of the global batch
    loss: float  # mean over the global batch, before the update
    correct: int  # samples of the global batch that were classified right; 0 for regression
    skipped: bool  # not finite, and left out


@dataclass(frozen=True)
class Evaluation:
    """Means over all samples of a split, each counted once; the same on all ranks."""

    num_samples: int
    loss: float
    accuracy: float | None  # None for regression


class Trainer:
    """Trains one model on the ranks of the data axis.

    Each step, every rank computes the gradient of its share of the global batch, divided by the
    size of the *global* batch, so that the sum over ranks is the mean gradient, however unevenly
    the batch divides. Loss and number of correct samples ride behind the gradients in the same
    buffer. All that follows is computed from reduced values, hence the same on all ranks.
    """

    def __init__(
        self,
        *,
        model: MLP,
        loss: Loss,
        dataset: Dataset,
        sampler: GlobalSampler,
        gradients: FlatGradients | TransientGradients,
        reducer: GradientReducer,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        comm: Communicator,
        rules: Rules,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.sampler = sampler
        self.phases = Phases()
        self.comm = comm
        self.num_steps = 0
        self._loss = loss
        self._gradients = gradients
        self._reducer = reducer
        self._optimizer = optimizer
        self._schedule = schedule
        self._rules = rules

    def epoch(self, epoch: int) -> Iterator[Step]:
        """All steps of one pass over the training samples."""
        for index in range(self.sampler.steps_per_epoch):
            yield self.step(epoch, index)

    def step(self, epoch: int, index: int) -> Step:
        """One optimizer step on the `index`-th global batch of `epoch`. Raises `NonFiniteError` on
        all ranks, or skips.
        """
        batch_size = self.sampler.batch_size_at(index)
        self._gradients.begin()
        for microbatch in range(self._rules.accumulation):
            ids = self.sampler.share(
                epoch,
                index,
                self.comm.rank,
                self.comm.size,
                microbatch,
                num_microbatches=self._rules.accumulation,
            )
            last = microbatch == self._rules.accumulation - 1
            self._accumulate(ids, batch_size, last)
        self._gradients.settle()
        with self.phases("exchange"):
            self._reducer.finish()
        return self._update(epoch, batch_size)

    def evaluate(self, split: Split, batch_size: int = 1024) -> Evaluation:
        """Mean loss and accuracy over a split, each rank computing its block of it. One allreduce
        of three words.
        """
        mine = partition.block(split.num_samples, self.comm.size, self.comm.rank)
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        with torch.inference_mode():
            for piece in partition.pieces(mine.size, batch_size):
                ids = np.arange(mine.start + piece.start, mine.start + piece.stop, dtype=np.int64)
                x, y = split.batch(ids)
                outputs = self._forward(x)
                sums[0] += self._loss(outputs, y).double()
                sums[1] += _num_correct(outputs, y, split)
        self.model.train()
        self.comm.allreduce(sums)
        accuracy = sums[1].item() / split.num_samples if split.task == "classification" else None
        return Evaluation(split.num_samples, sums[0].item() / split.num_samples, accuracy)

    def close(self) -> None:
        """Let no exchange be under way any more: for a run that ends before its last step.
        Collective.
        """
        close = getattr(self._reducer, "close", None)
        if close is not None:
            close()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def diagnostics(self) -> dict[str, float]:
        """What the reducer has to say of the last step, for the metrics."""
        return self._reducer.diagnostics()

    def state_dict(self) -> dict[str, Any]:
        """All state that the next steps depend on, and the only place that names it.

        The data needs none: which samples come next follows from the step number.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "reducer": self._reducer.state_dict(),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._reducer.load_state_dict(state["reducer"])
        self.num_steps = state["num_steps"]

    def _accumulate(self, ids: Ids, batch_size: int, last: bool) -> None:
        """Add this microbatch's share of the mean gradient into the buffer; a rank without samples
        adds nothing.
        """
        if len(ids) == 0:
            if last:
                self._reducer.start()
            return
        with self.phases("data"):
            x, y = self.dataset.train.batch(ids)
        with self.phases("forward"):
            outputs = self._forward(x, self.model.dropout_keys(self.num_steps, ids))
            loss = self._loss(outputs, y) / batch_size
            self._gradients.tail[0] += loss.detach()
            self._gradients.tail[1] += _num_correct(outputs.detach(), y, self.dataset.train)
        if last:
            self._reducer.start()
        with self.phases("backward"):
            loss.backward()  # type: ignore[no-untyped-call]

    def _update(self, epoch: int, batch_size: int) -> Step:
        loss, correct = self._gradients.tail.tolist()
        with self.phases("update"):
            finite = math.isfinite(loss) and self._clip()
            if finite:
                self._optimizer.step()
            elif self._rules.nonfinite == "stop":
                raise _nonfinite(loss, epoch, self.num_steps)
            self._schedule.step()
        self.num_steps += 1
        return Step(
            self.num_steps - 1,
            epoch,
            batch_size,
            loss,
            round(correct) if finite else 0,
            skipped=not finite,
        )

    def _clip(self) -> bool:
        """Scale the gradient down to the largest norm allowed; false if it isn't finite.

        Looking at the norm costs a pass over the gradient. Where non-finite steps stop the run, the
        next step's loss tells too.
        """
        limit = self._rules.clip_norm
        if limit is None and self._rules.nonfinite == "stop":
            return True
        norm = self._gradients.norm()
        if not math.isfinite(norm):
            return False
        if limit is not None and norm > limit:
            self._gradients.scale(limit / norm)
        return True

    def _forward(self, x: torch.Tensor, keys: Keys | None = None) -> torch.Tensor:
        """Outputs in the dtype of the parameters, however the products were computed."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._rules.autocast):
            outputs: torch.Tensor = self.model(x, keys)
        return outputs.to(x.dtype)


def _num_correct(outputs: torch.Tensor, y: torch.Tensor, split: Split) -> torch.Tensor | int:
    return (outputs.argmax(1) == y).sum() if split.task == "classification" else 0


def _nonfinite(loss: float, epoch: int, step: int) -> NonFiniteError:
    error = NonFiniteError(
        f"the loss is {loss} in epoch {epoch}, step {step} on all ranks, or its gradient is not "
        "finite: lower optimizer.lr, set "
        "clip_norm, or skip such steps with nonfinite=skip"
    )
    error.agreed = True
    return error
