"""One product from a configuration: planned, run on random matrices, timed, and checked."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.config.gemm import GemmConfig
from dist_ml.errors import NonFiniteError
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

# Each rank checks a corner of what it owns, this many rows and columns, against float64: their
# operands are made anew.
_CHECKED = 32


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
            tallies = [
                t for (_, name), t in comm.traffic.since(before).items() if name != "allreduce"
            ]
            moved = Moved(
                *(
                    sum(getattr(t, key) for t in tallies)
                    for key in ("words_sent", "words_received", "messages")
                )
            )
    gemm.free()
    error = slowest(comm, _corner_error(config, plan, c))
    if not error <= 1:
        raise NonFiniteError(
            f"the product is wrong: its error is {error:.3g} times what rounding can make; this "
            "is a bug"
        )
    return Outcome(plan, seconds, comm.allgather_objects(moved), error)


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
    for piece, view in list(c.blocks())[:2]:
        rows = torch.arange(piece.rows.start, min(piece.rows.stop, piece.rows.start + _CHECKED))
        cols = torch.arange(piece.cols.start, min(piece.cols.stop, piece.cols.start + _CHECKED))
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
