"""One product from a configuration: planned, run on random matrices, timed, and checked."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.traffic import Tally
from dist_ml.config.gemm import GemmConfig
from dist_ml.errors import ConfigError, NonFiniteError
from dist_ml.gemm import matrix
from dist_ml.gemm.from_config import plan_of
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.matrix import ShardedMatrix
from dist_ml.gemm.multiply import Gemm
from dist_ml.gemm.plan import Moved, Plan
from dist_ml.gemm.reference import error_over_bound
from dist_ml.kernels import kernels
from dist_ml.kernels.product import Product, local_product
from dist_ml.kernels.tuner import Shape, Tuner
from dist_ml.measure.compare import seconds_per_call, slowest

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}

# Each rank checks a corner of what it owns against float64, at most this many rows and columns,
# whose operands are made anew: at most this many words of each.
_CHECKED = 32
_CHECKED_WORDS = 1 << 22


@dataclass(frozen=True)
class Outcome:
    """What was measured, the same on all ranks."""

    plan: Plan
    seconds: list[float]  # of each multiplication, on the slowest rank
    moved: list[Moved]  # by the ledger, of one multiplication, by rank
    error_over_bound: float  # against float64; at most 1 where the result is right

    @property
    def flops(self) -> float:
        p = self.plan.shape
        return 2.0 * p.m * p.n * p.k

    @property
    def as_planned(self) -> bool:
        """Does the ledger say what the plan said, on every rank?"""
        return all(moved == self.plan.moved(rank) for rank, moved in enumerate(self.moved))


def run(config: GemmConfig, comm: Communicator) -> Outcome:
    """Multiply `config.repeats` times. `NonFiniteError` where the result is not what rounding
    allows. Collective.
    """
    plan = plan_of(config, comm.size)
    _require_memory(plan, comm)
    dtype = DTYPES[config.dtype]
    a, b = (
        _operand(plan.layout_a, comm, config.seed, dtype),
        _operand(plan.layout_b, comm, config.seed + 1, dtype),
    )
    c = matrix.random(plan.layout_c, comm, config.seed + 2, dtype)
    gemm = Gemm(plan, comm, tuned_product(config.kernel, panel_shapes(plan), comm))
    seconds, moved = [], Moved(0, 0, 0)
    for repeat in range(config.repeats):
        _refill(c, config.seed + 2)
        before = comm.traffic.snapshot()
        multiply = partial(gemm, a, b, c, config.alpha, config.beta)
        seconds.append(seconds_per_call(comm, multiply))
        if repeat == 0:
            moved = ledger_moved(comm.traffic.since(before))
    gemm.free()
    error = slowest(comm, _corner_error(config, plan, c))
    if not error <= 1:
        raise NonFiniteError(
            f"the product is wrong: its error is {error:.3g} times what rounding can make; this "
            "is a bug"
        )
    return Outcome(plan, seconds, comm.allgather_objects(moved), error)


def ledger_moved(since: Mapping[tuple[str, str], Tally]) -> Moved:
    """What the ledger entered for products: all but the allreduces of whoever measures them."""
    tallies = [tally for (_, name), tally in since.items() if name != "allreduce"]
    return Moved(
        sum(tally.words_sent for tally in tallies),
        sum(tally.words_received for tally in tallies),
        sum(tally.messages for tally in tallies),
    )


def check_kernel(kernel: str) -> None:
    """`ConfigError` for a kernel that there is not, or that this processor can't run."""
    if kernel != kernels.AUTO:
        kernels.named(kernel)


def _require_memory(plan: Plan, comm: Communicator) -> None:
    """`ConfigError` on all ranks where a node has less memory than its ranks need. Collective."""
    node = comm.split_by_node()
    needed = min(node.size, plan.grid.size) * plan.peak_bytes
    node.free()
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with raise_on_all_ranks(comm):
        if needed > present:
            raise ConfigError(
                f"the ranks of a node need {needed:,} bytes for their shards and panels, but it "
                f"has {present:,}; choose smaller sizes, or more nodes"
            )


def tuned_product(kernel: str, shapes: Iterable[Shape], comm: Communicator) -> Product:
    """The local product; with auto, `shapes` are measured first where this machine's cache lacks
    them. Collective.
    """
    if kernel != kernels.AUTO:
        return local_product(kernel)
    tuner = Tuner()
    node = comm.split_by_node()
    if node.rank == 0:
        tuner.tune(shapes)
    node.barrier()
    node.free()
    tuner.reload()
    return local_product(kernel, tuner)


def panel_shapes(plan: Plan) -> list[Shape]:
    """The products that rank 0 computes, in their order."""
    rows, cols, _ = plan.block(0)
    stored = ("T" if plan.layout_a.column_major else "N") + (
        "T" if plan.layout_b.column_major else "N"
    )
    dtype = "float64" if plan.shape.word_bytes == 8 else "float32"
    return [Shape(rows.size, cols.size, panel.size, stored, dtype) for panel in plan.panels(0)]


def _operand(layout: Layout, comm: Communicator, seed: int, dtype: torch.dtype) -> ShardedMatrix:
    """Random by (seed, row, column) of the stored matrix; a transposed operand is a view of it."""
    if layout.column_major:
        return matrix.random(layout.transposed, comm, seed, dtype).T
    return matrix.random(layout, comm, seed, dtype)


def _refill(c: ShardedMatrix, seed: int) -> None:
    c.storage.copy_(matrix.random(c.layout, c.comm, seed, c.dtype).storage)


def _corner_error(config: GemmConfig, plan: Plan, c: ShardedMatrix) -> float:
    """The error of a corner of what this rank owns, over the bound."""
    worst = 0.0
    corner = max(1, min(_CHECKED, _CHECKED_WORDS // max(1, plan.shape.k)))
    for piece, view in list(c.blocks())[:2]:
        rows = torch.arange(piece.rows.start, min(piece.rows.stop, piece.rows.start + corner))
        cols = torch.arange(piece.cols.start, min(piece.cols.stop, piece.cols.start + corner))
        found = view[: rows.numel(), : cols.numel()]
        depth = torch.arange(plan.shape.k)
        a = _elements(plan.layout_a, config.seed, rows, depth).to(c.dtype)
        b = _elements(plan.layout_b, config.seed + 1, depth, cols).to(c.dtype)
        before = _elements(plan.layout_c, config.seed + 2, rows, cols).to(c.dtype)
        worst = max(worst, error_over_bound(found, a, b, before, config.alpha, config.beta))
    return worst


def _elements(layout: Layout, seed: int, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Elements of a random operand by global index, without its shards."""
    if layout.column_major:
        return matrix.random_elements(seed, layout.rows, cols, rows).T
    return matrix.random_elements(seed, layout.cols, rows, cols)
