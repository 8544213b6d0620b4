"""Means over all samples of a split; needs a model and an objective, and nothing that trains."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from dist_ml import partition
from dist_ml.comm.communicator import Communicator
from dist_ml.datasets.dataset import Split
from dist_ml.models import BlockModel, Objective, forward


@dataclass(frozen=True)
class Evaluation:
    """Means over all samples of a split, each counted once; the same on all ranks."""

    num_samples: int
    loss: float
    accuracy: float | None  # None where nothing is classified
    bits_per_byte: float | None = None  # the loss in bits, where it is that of bytes

    @classmethod
    def of(cls, sums: torch.Tensor, objective: Objective, num_samples: int) -> "Evaluation":
        """From loss and metrics summed over all samples, float64 [num_slots]."""
        means = (sums / (num_samples * objective.items_per_sample)).tolist()
        named = dict(zip(objective.metric_names, means[1:], strict=True))
        bits = means[0] / math.log(2) if objective.bytewise else None
        return cls(num_samples, means[0], named.get("correct"), bits)


class Evaluator:
    """Each rank of `data` computes its block of a split. One allreduce of a word a sum."""

    def __init__(
        self, model: BlockModel, objective: Objective, data: Communicator, autocast: bool
    ) -> None:
        self.model = model
        self._objective = objective
        self._data = data
        self._autocast = autocast

    def evaluate(self, split: Split, batch_size: int = 1024) -> Evaluation:
        """Mean loss and accuracy, of about `batch_size` items at once. Collective."""
        rows = max(1, batch_size // self._objective.items_per_sample)
        mine = partition.block(split.num_samples, self._data.size, self._data.rank)
        sums = torch.zeros(self._objective.num_slots, dtype=torch.float64)
        self.model.context.clear()
        self.model.eval()
        with torch.inference_mode():
            for piece in partition.pieces(mine.size, rows):
                ids = np.arange(mine.start + piece.start, mine.start + piece.stop, dtype=np.int64)
                batch = split.batch(ids)
                outputs = forward(self.model, batch.inputs, self._autocast)
                sums += torch.stack(
                    [value.double() for value in self._objective.sums(outputs, batch.targets)]
                )
        self.model.train()
        self._data.allreduce(sums)
        return Evaluation.of(sums, self._objective, split.num_samples)

    def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's outputs for inputs that all ranks have. Collective along the operator
        axis.
        """
        self.model.context.clear()
        self.model.eval()
        with torch.inference_mode():
            outputs = self._objective.whole(forward(self.model, inputs, self._autocast))
        self.model.train()
        return outputs
