"""Means over all samples of a split; needs a model and an objective, and nothing that trains."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.datasets.dataset import Split
from dist_ml.models import BlockModel, Objective, forward
from dist_ml.partition import Range, block, pieces


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


class SplitShare:
    """This rank's block of the `num_samples` of a split, in pieces of at most `rows`, and sums over
    all of them.

    With `num_shards`, whole shards of the split, each in pieces of its own and with sums of its
    own, which are added in order: the same bits on any number of ranks that divides it.
    """

    def __init__(
        self, num_samples: int, rows: int, data: Communicator, num_sums: int, num_shards: int | None
    ) -> None:
        self._sums = torch.zeros(num_shards or 1, num_sums, dtype=torch.float64)
        self.pieces = _pieces_of(data.rank, num_samples, rows, data.size, num_shards)
        self.most_pieces = len(_pieces_of(0, num_samples, rows, data.size, num_shards))

    def add(self, shard: int, sums: Iterable[torch.Tensor]) -> None:
        """Those of a piece."""
        self._sums[shard] += torch.stack([value.double() for value in sums])

    def total(self, comm: Communicator) -> torch.Tensor:
        """Over all ranks of `comm`, float64 [num_sums]. One allreduce of a word a sum and shard."""
        comm.allreduce(self._sums)
        total = torch.zeros_like(self._sums[0])
        for sums in self._sums:
            total += sums
        return total


def _pieces_of(
    rank: int, num_samples: int, rows: int, num_ranks: int, num_shards: int | None
) -> list[tuple[int, Range]]:
    """The pieces of one rank, each with the number of its shard; the first rank has the most."""
    if num_shards is None:
        own = [(0, block(num_samples, num_ranks, rank))]
    else:
        shards = block(num_shards, num_ranks, rank)
        own = [(shard, block(num_samples, num_shards, shard)) for shard in range(*shards)]
    return [
        (shard, Range(mine.start + piece.start, mine.start + piece.stop))
        for shard, mine in own
        for piece in pieces(mine.size, rows)
    ]


@contextlib.contextmanager
def evaluating(model: BlockModel) -> Iterator[None]:
    """Within the block the model computes as it does where nothing is trained."""
    model.context.clear()
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train()


def no_border() -> None:
    """What to do before each batch of an evaluation that is made to its end."""


class Evaluator:
    """Each rank of `data` computes its share of a split."""

    def __init__(
        self,
        model: BlockModel,
        objective: Objective,
        data: Communicator,
        autocast: bool,
        num_shards: int | None = None,
    ) -> None:
        self._num_shards = num_shards
        self.model = model
        self._objective = objective
        self._data = data
        self._autocast = autocast

    def evaluate(
        self,
        split: Split,
        batch_size: int = 1024,
        at_border: Callable[[], None] = no_border,
    ) -> Evaluation:
        """Mean loss and accuracy, of about `batch_size` items at once. Collective, as `at_border`
        may be, which all ranks call before each of their batches, equally often; what it raises
        ends the evaluation.
        """
        rows = max(1, batch_size // self._objective.items_per_sample)
        num_sums = self._objective.num_slots
        share = SplitShare(split.num_samples, rows, self._data, num_sums, self._num_shards)
        with evaluating(self.model):
            for number in range(share.most_pieces):
                at_border()
                for shard, piece in share.pieces[number : number + 1]:
                    batch = split.batch(np.arange(piece.start, piece.stop, dtype=np.int64))
                    outputs = forward(self.model, batch.inputs, self._autocast)
                    share.add(shard, self._objective.sums(outputs, batch.targets))
        return Evaluation.of(share.total(self._data), self._objective, split.num_samples)

    def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's outputs for inputs that all ranks have. Collective along the operator
        axis.
        """
        with evaluating(self.model):
            return self._objective.whole(forward(self.model, inputs, self._autocast))
