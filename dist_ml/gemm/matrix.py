"""A matrix whose blocks live on the ranks of a communicator."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from dist_ml import counter_random
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.gemm.exchange import exchange, piece_view
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.layouts import on_one_rank
from dist_ml.gemm.pieces import Piece

# Random numbers are made for this many elements at a time, so that their 64-bit counters stay small
# beside the matrix.
_FILL_WORDS = 1 << 20


@dataclass(frozen=True)
class ShardedMatrix:
    """A layout and what this rank owns of it: `storage`, one-dimensional, `layout.num_words(rank)`
    elements.

    All ranks of `comm` hold the same layout; ranks beyond its grid hold an empty storage. A
    transpose shares its storage.
    """

    layout: Layout
    comm: Communicator
    storage: torch.Tensor

    def __post_init__(self) -> None:
        if self.layout.num_ranks > self.comm.size:
            raise ConfigError(
                f"grid {self.layout.grid} has {self.layout.num_ranks} ranks, but {self.comm.size} "
                "were started; start as many or "
                "choose a smaller grid"
            )
        expected = self.layout.num_words(self.comm.rank)
        if self.storage.dim() != 1 or self.storage.numel() != expected:
            raise ConfigError(
                f"rank {self.comm.rank} owns {expected} elements of {self.layout.describe()}, but "
                "its storage has shape "
                f"{tuple(self.storage.shape)}; pass a flat tensor of that many"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def T(self) -> "ShardedMatrix":  # noqa: N802 - as numpy and torch spell it
        """The transpose: the same storage under the transposed layout; nothing moves."""
        return replace(self, layout=self.layout.transposed)

    @property
    def local(self) -> torch.Tensor:
        """This rank's block as a 2-D view; for layouts that deal out one element at a time there is
        none.
        """
        rows, cols = self.layout.block_shape(self.comm.rank)
        assert rows * cols == self.storage.numel(), (
            f"{self.layout.describe()} does not store whole blocks"
        )
        return (
            self.storage.view(cols, rows).T
            if self.layout.column_major
            else self.storage.view(rows, cols)
        )

    def blocks(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Each piece that this rank owns with its view of the storage."""
        for piece in self.layout.pieces(self.comm.rank):
            yield piece, piece_view(self.storage, piece)

    def to(self, layout: Layout) -> "ShardedMatrix":
        """The same matrix under another layout. Collective. Words: exactly the elements whose owner
        changes, each once.
        """
        if layout.shape != self.shape:
            raise ConfigError(
                f"a {self.shape} matrix can't be laid out as {layout.shape}; the sizes must agree"
            )
        if layout == self.layout:
            return self
        target = empty(layout, self.comm, self.dtype)
        exchange(self.comm, (self.layout, self.storage), (layout, target.storage))
        return target

    def gather(self) -> torch.Tensor | None:
        """The whole matrix on rank 0, None elsewhere. Collective."""
        whole = self.to(on_one_rank(*self.shape))
        return whole.local if self.comm.rank == 0 else None

    def gather_everywhere(self) -> torch.Tensor:
        """The whole matrix on every rank. Collective."""
        gathered = self.gather()
        whole = (
            torch.empty(self.shape, dtype=self.dtype) if gathered is None else gathered.contiguous()
        )
        self.comm.broadcast(whole)
        return whole


def empty(layout: Layout, comm: Communicator, dtype: torch.dtype = torch.float32) -> ShardedMatrix:
    """A matrix with storage that is not initialised."""
    return ShardedMatrix(layout, comm, torch.empty(layout.num_words(comm.rank), dtype=dtype))


def zeros(layout: Layout, comm: Communicator, dtype: torch.dtype = torch.float32) -> ShardedMatrix:
    return ShardedMatrix(layout, comm, torch.zeros(layout.num_words(comm.rank), dtype=dtype))


def random(
    layout: Layout, comm: Communicator, seed: int, dtype: torch.dtype = torch.float32
) -> ShardedMatrix:
    """Uniform in [-1, 1) by (seed, global row, global column): the same matrix in any layout, on
    any number of ranks.
    """
    return from_function(
        lambda rows, cols: random_elements(seed, layout.cols, rows, cols), layout, comm, dtype
    )


def random_elements(seed: int, width: int, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """The elements (global `rows` x global `cols`, float64) of the random matrix of `width`
    columns.
    """
    counters = rows.numpy()[:, None] * width + cols.numpy()[None, :]
    return torch.from_numpy(
        2.0 * counter_random.uniform(counter_random.stream("gemm", seed), counters) - 1.0
    )


def from_function(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    layout: Layout,
    comm: Communicator,
    dtype: torch.dtype,
) -> ShardedMatrix:
    """Each rank fills what it owns: `function(rows, cols)` gives the block of these global indices
    (1-D int64 tensors).
    """
    matrix = empty(layout, comm, dtype)
    for piece, view in matrix.blocks():
        height = max(1, _FILL_WORDS // max(1, piece.cols.size))
        cols = torch.arange(*piece.cols)
        for start in range(0, piece.rows.size, height):
            rows = torch.arange(
                piece.rows.start + start, min(piece.rows.stop, piece.rows.start + start + height)
            )
            view[start : start + rows.numel()].copy_(function(rows, cols))
    return matrix


def shard(whole: torch.Tensor, layout: Layout, comm: Communicator) -> ShardedMatrix:
    """What this rank owns of a matrix that every rank has whole. No communication."""
    matrix = empty(layout, comm, whole.dtype)
    for piece, view in matrix.blocks():
        view.copy_(whole[piece.rows.slice, piece.cols.slice])
    return matrix


def scatter(
    whole: torch.Tensor | None, layout: Layout, comm: Communicator, dtype: torch.dtype
) -> ShardedMatrix:
    """Deal out a matrix that rank 0 has (None elsewhere). Collective."""
    source = on_one_rank(*layout.shape)
    storage = (
        torch.empty(0, dtype=dtype) if whole is None else whole.to(dtype).contiguous().view(-1)
    )
    return ShardedMatrix(source, comm, storage).to(layout)
