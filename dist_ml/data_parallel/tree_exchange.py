"""The sum of vectors over ranks, in an order that doesn't depend on how many there are.

Of N terms, each rank has added up its own N / P consecutive ones, as far as the tree of all
(`summation_tree.py`) goes there: to s sums of n elements.

    1 alltoall      each rank gets its block of the n elements, of all sums of all ranks
    2 add           the rest of the tree, by one rank for each element
    3 allgather     the blocks

Words sent by a rank with a block of b elements: s (n - b) + b (P - 1). Where N / P is a power of
two, s is 1, and these are the words of an allreduce.
"""

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.summation_tree import Node, SummationTree, subtrees
from dist_ml.partition import Range, block, blocks


class TreeExchange:
    """Sums vectors of `n` elements over the ranks of `comm`, whose number divides `num_terms`.
    `own`: the nodes of the tree that this rank brings.
    """

    def __init__(self, comm: Communicator, num_terms: int, n: int) -> None:
        assert num_terms % comm.size == 0, (num_terms, comm.size)
        self._comm = comm
        self._tree = SummationTree(num_terms)
        (self._root,) = subtrees(Range(0, num_terms), num_terms)
        self._blocks = blocks(n, comm.size)
        self._nodes = [nodes_of(num_terms, comm.size, rank) for rank in range(comm.size)]
        self.own = self._nodes[comm.rank]

    def __call__(self, sums: torch.Tensor, total: torch.Tensor) -> None:
        """The sum over all ranks of their `sums` [len(own), n] into `total` [n]. Collective.

        Memory: the sums once more, and this rank's block of all ranks' sums.
        """
        if self._comm.size == 1:
            total.copy_(sums[0])
            return
        mine = self._blocks[self._comm.rank]
        sent = torch.cat([sums[:, part.slice].reshape(-1) for part in self._blocks])
        send_counts = [len(self.own) * part.size for part in self._blocks]
        receive_counts = [len(nodes) * mine.size for nodes in self._nodes]
        received = sums.new_empty(sum(receive_counts))
        self._comm.alltoall(sent, received, send_counts, receive_counts)
        everybodys = [node for nodes in self._nodes for node in nodes]
        for node, values in zip(everybodys, received.view(len(everybodys), mine.size), strict=True):
            self._tree.add(node, values)
        total[mine.slice] = self._tree.take(self._root)
        # Polled: in the wait of a blocking call ranks that share cores take them from each other.
        self._comm.iallgather(None, total).wait()


def nodes_of(num_terms: int, num_ranks: int, rank: int) -> list[Node]:
    """The sums that a rank forms of its own terms."""
    return subtrees(block(num_terms, num_ranks, rank), num_terms)


def words(n: int, num_terms: int, num_ranks: int, rank: int) -> int:
    """That a rank sends, of vectors of `n` elements."""
    own = block(n, num_ranks, rank).size
    return len(nodes_of(num_terms, num_ranks, rank)) * (n - own) + own * (num_ranks - 1)
