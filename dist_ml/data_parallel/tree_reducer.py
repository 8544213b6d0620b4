"""Dense gradient exchange whose sums have the same bits on any number of ranks."""

from collections.abc import Sequence

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reduced_gradients import Counted, Full, root
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.summation_tree import Node, SummationTree
from dist_ml.data_parallel.tree_exchange import TreeExchange
from dist_ml.partition import Range, block


class TreeReducer(GradientReducer):
    """Sums the gradients of `num_shards` micro-batches over the ranks of `comm`, and the slots, in
    the order of one tree, of which each micro-batch is a leaf.

    Rank r has the micro-batches [r, r + 1) num_shards / P, numbered from 0 on each rank. All ranks
    compute each by products of the same sizes, so the leaves have the same bits wherever they are.
    `positions`: of this rank's parameters among the `num_parameters` of the whole model, so that
    the norm, too, is a sum in one order.

    Memory: the gradients up to 1 + 2 log2(num_shards / P) times, and what `TreeExchange` needs.
    Words: `tree_exchange.words`, of gradients and slots.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        num_slots: int,
        comm: Communicator,
        num_shards: int,
        positions: Sequence[int],
        num_parameters: int,
    ) -> None:
        # The layers' own sinks would add to what other micro-batches left.
        self._gradients = gradients = FlatGradients(parameters, num_slots, attach_sinks=False)
        self._views = [parameter.grad for parameter in gradients.parameters]
        self._own = block(num_shards, comm.size, comm.rank)
        self._trees = [SummationTree(num_shards) for _ in range(len(self._views) + 1)]
        self._exchange = TreeExchange(comm, num_shards, gradients.buffer.numel())
        whole = gradients.buffer.unsqueeze(0)
        alone = comm.size == 1
        self._sums = whole if alone else whole.new_empty(len(self._exchange.own), whole.shape[1])
        self._positions, self._num_parameters = positions, num_parameters
        self._leaf_slots = gradients.slots.new_zeros(self._own.size, num_slots)
        self._arrived: list[set[int]] = []
        self.slots = gradients.slots

    def begin(self) -> None:
        for parameter in self._gradients.parameters:
            parameter.grad = None
        for tree in self._trees:
            tree.clear()
        self._arrived = [set() for _ in self._gradients.parameters]
        self._leaf_slots.zero_()
        self.slots.zero_()

    def slots_of(self, microbatch: int) -> torch.Tensor:
        return self._leaf_slots[microbatch]

    def after_backward(self, microbatch: int) -> None:
        """What the pass has left in `.grad` becomes a leaf."""
        for number, parameter in enumerate(self._gradients.parameters):
            if parameter.grad is not None:
                self._add(number, microbatch, parameter.grad)
                parameter.grad = None

    def finish(self) -> "OrderedGradients":
        self._leaf_slots[0] += self.slots  # what belongs to no micro-batch
        for microbatch, values in enumerate(self._leaf_slots):
            self._trees[-1].add(Node(0, self._own.start + microbatch), values.clone())
        for number, parameter in enumerate(self._gradients.parameters):
            for microbatch in set(range(self._own.size)) - self._arrived[number]:
                self._add(number, microbatch, torch.zeros_like(parameter))
        n = self._gradients.num_words
        places = [*self._gradients.ranges, Range(n, n + len(self.slots))]
        for tree, where in zip(self._trees, places, strict=True):
            for row, node in zip(self._sums, self._exchange.own, strict=True):
                row[where.slice] = tree.take(node).reshape(-1)
        self._exchange(self._sums, self._gradients.buffer)
        for parameter, view in zip(self._gradients.parameters, self._views, strict=True):
            parameter.grad = view
        return OrderedGradients(self._gradients, self._positions, self._num_parameters)

    def _add(self, number: int, microbatch: int, gradient: torch.Tensor) -> None:
        assert microbatch not in self._arrived[number], (number, microbatch)
        self._arrived[number].add(microbatch)
        self._trees[number].add(Node(0, self._own.start + microbatch), gradient)


class OrderedGradients(Full):
    """The whole sum on every rank; its norm is a sum over parameters in the model's order."""

    def __init__(
        self, gradients: FlatGradients, positions: Sequence[int], num_parameters: int
    ) -> None:
        super().__init__(gradients.flat, gradients.slots)
        self._ranges = gradients.ranges
        self._positions, self._num_parameters = positions, num_parameters

    def squares(self, counted: Counted = ()) -> list[float]:
        """One for each parameter of the model, 0 for those of other ranks."""
        assert not counted, "ranks that hold the same would count a part each"
        squares = [0.0] * self._num_parameters
        for position, where in zip(self._positions, self._ranges, strict=True):
            part = torch.linalg.vector_norm(self._flat[where.slice], dtype=torch.float64)
            squares[position] = float(part) ** 2
        return squares

    def norm(self, counted: Counted = ()) -> float:
        return root(sum(self.squares(counted)))
