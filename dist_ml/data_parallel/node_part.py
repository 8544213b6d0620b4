"""The hierarchical scheme: dense sums inside a node, where words are cheap, sparse ones between
nodes.
"""

from collections.abc import Sequence

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.density import DensityGroups
from dist_ml.data_parallel.flat_state import FlatState
from dist_ml.data_parallel.sparse_part import SparsePart
from dist_ml.errors import ConfigError
from dist_ml.partition import block


class NodePart(SparsePart):
    """A `SparsePart` whose ranks are nodes: each rank of a node sums one shard of `whole` with its
    peers on the other nodes.

    node A:  rank 0  [shard 0 | shard 1]  1. reduce-scatter in the node: n (L-1)/L words
             rank 1  [shard 0 | shard 1]  2. rank i of every node: sparse sum of shard i
    node B:  rank 2, rank 3 likewise      3. allgather in the node: n (L-1)/L words

    The residual is the shard's, n/L elements a rank: the node remembers as one.
    """

    def __init__(
        self,
        whole: Array,
        groups: DensityGroups,
        node: Communicator,
        across: Communicator,
        config: SparseConfig,
        seed: int = 0,
    ) -> None:
        shard = block(whole.size, node.size, node.rank)
        inside = groups.within(shard).sparse
        super().__init__(np.zeros(shard.size, whole.dtype), inside, across, config, seed)
        self._whole = whole
        self._start = shard.start
        self._node = node

    def select(self, density: float, scale: float = 1.0) -> None:
        with self.phases("node"):
            if scale != 1.0:
                self._whole *= self._whole.dtype.type(scale)
            self._node.reduce_scatter(self._whole, self.vector)
        super().select(density)

    def tensors(self, start: int) -> list[FlatState]:
        return super().tensors(start + self._start)

    def finish_apply(self) -> None:
        with self.phases("node"):
            self._node.allgather(self.vector, self._whole)


def split_nodes(comm: Communicator) -> tuple[Communicator, Communicator]:
    """The ranks of this rank's node, and its peers on the other nodes. Collective. `ConfigError`
    when nodes differ in size.
    """
    node = comm.split_by_node(axis=f"{comm.axis} in node")
    sizes: Sequence[int] = comm.allgather_objects(node.size)
    if len(set(sizes)) > 1:
        raise ConfigError(
            "sparse.hierarchical needs as many ranks on each node, but ranks see nodes of "
            f"{sorted(set(sizes))} ranks; "
            "start the same number on each, or set sparse.hierarchical=false"
        )
    across = comm.split(node.rank, axis=f"{comm.axis} between nodes")
    assert across is not None
    return node, across
