"""Every algorithm on 1 to 9 ranks: right against float64, and what was seen to move, what the
ledger entered and what the plan states are the same words.
"""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.gemm import family, matrix
from dist_ml.gemm.autograd import matmul as differentiable_matmul
from dist_ml.gemm.autograd import relayout
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.experiment import ledger_moved
from dist_ml.gemm.family import GEMMS, NAMES
from dist_ml.gemm.grid import Grid, Tiles
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.layouts import block_cols, block_cyclic, block_rows
from dist_ml.gemm.matrix import ShardedMatrix
from dist_ml.gemm.multiply import Gemm, matmul
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.reference import error_over_bound
from dist_ml.kernels.product import local_product
from tests.message_world import MessageTransport, Seen, run_message_ranks

SIZES = [1, 2, 3, 5, 7, 16, 31, 64, 65]
DTYPES = {torch.float32: (4, 4), torch.float64: (8, 8), torch.bfloat16: (2, 4)}
PRODUCT = local_product("torch")


def operand(layout: Layout, comm: Communicator, seed: int, dtype: torch.dtype) -> ShardedMatrix:
    """Random, in `layout`; where that is column-major, the transpose view of a stored matrix."""
    if layout.column_major:
        return matrix.random(layout.transposed, comm, seed, dtype).T
    return matrix.random(layout, comm, seed, dtype)


def multiply(
    plan: Plan, comm: Communicator, seen: Seen, dtype: torch.dtype, factors: tuple[float, float]
) -> tuple[float, tuple[int, int, int], tuple[int, int, int]]:
    """(error over its bound, what was seen to move, what the ledger entered) on this rank."""
    a, b = operand(plan.layout_a, comm, 1, dtype), operand(plan.layout_b, comm, 2, dtype)
    c = matrix.random(plan.layout_c, comm, 3, dtype)
    wholes = [x.gather_everywhere() for x in (a, b, c)]
    gemm = Gemm(plan, comm, PRODUCT)
    comm.barrier()
    seen.clear()
    before = comm.traffic.snapshot()
    gemm(a, b, c, *factors)
    moved, entered = seen.as_tuple(), ledger_moved(comm.traffic.since(before))
    error = error_over_bound(c.gather_everywhere(), *wholes, *factors)
    return error, moved, entered


def check(plan: Plan, dtype: torch.dtype, factors: tuple[float, float] = (1.0, 0.0)) -> None:
    ranks = plan.shape.ranks
    found = run_message_ranks(ranks, lambda comm, seen: multiply(plan, comm, seen, dtype, factors))
    for rank, (error, seen, entered) in enumerate(found):
        assert error <= 1, plan
        assert seen == entered == tuple(plan.moved(rank)), (rank, plan)


@pytest.mark.parametrize("ranks", range(1, 10))
@pytest.mark.parametrize("name", list(GEMMS))
def test_products_are_right_and_move_what_is_planned(name: str, ranks: int) -> None:
    """Every algorithm meets each dtype on three numbers of ranks."""
    draw = random.Random(f"{name} {ranks}")
    dtype, word_sizes = list(DTYPES.items())[ranks % 3]
    m, n, k = (draw.choice(SIZES) for _ in range(3))
    orders = Orders(draw.random() < 0.5, draw.random() < 0.5)
    shape = ProductShape(m, n, k, ranks, *word_sizes)
    panel = draw.choice([None, 1, 7]) if "panel" in GEMMS[name].honours else None
    plan = family.plan(name, shape, Choice(panel=panel), orders)
    if draw.random() < 0.5:
        plan = family.plan(name, replace(shape, memory=plan.working_bytes), None, orders)
    check(plan, dtype, draw.choice([(1.0, 0.0), (2.0, -1.0), (0.5, 1.0), (0.0, 2.0)]))


@pytest.mark.parametrize(
    ("grid", "dtype"),
    [
        ((1, 1, 5), torch.bfloat16),
        ((2, 1, 3), torch.float32),
        ((1, 2, 2), torch.float64),
        ((3, 2, 1), torch.bfloat16),
    ],
    ids=str,
)
def test_tiles_of_c_one_after_the_other(grid: tuple[int, int, int], dtype: torch.dtype) -> None:
    choice = Choice(Grid(*grid), panel=3, tiles=Tiles(2, 3))
    shape = ProductShape(13, 11, 17, Grid(*grid).size, *DTYPES[dtype])
    check(family.plan("cosma", shape, choice), dtype, (2.0, 0.5))


@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_empty_and_tiny_products(name: str, sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes

    def body(comm: Communicator, _: Seen) -> None:
        a = matrix.random(block_rows(m, k, comm.size), comm, 1)
        b = matrix.random(block_cols(k, n, comm.size), comm, 2)
        found = matmul(a, b, name, product=PRODUCT).gather_everywhere()
        torch.testing.assert_close(found, a.gather_everywhere() @ b.gather_everywhere())

    run_message_ranks(3, body)


def test_operands_in_other_layouts_are_redistributed() -> None:
    def body(comm: Communicator, _: Seen) -> None:
        a = matrix.random(block_rows(19, 23, comm.size), comm, 1)
        b = matrix.random(block_cyclic(23, 17, (1, comm.size), (3, 5)), comm, 2)
        c = matrix.random(block_cols(19, 17, comm.size), comm, 3)
        wholes = [x.gather_everywhere() for x in (a, b, c)]
        plan = family.plan("summa", ProductShape(19, 17, 23, comm.size))
        result = Gemm(plan, comm, PRODUCT)(a, b, c, 2.0, 0.5)
        assert result is c
        assert error_over_bound(c.gather_everywhere(), *wholes, 2.0, 0.5) <= 1

    run_message_ranks(5, body)


class Doubled(MessageTransport):
    """Reduces twice, as a bug might."""

    def reduce_scatter(self, send: Any, receive: Any, counts: Any, op: str) -> None:
        super().reduce_scatter(send, receive, counts, op)
        super().reduce_scatter(send, receive, counts, op)


def test_a_doubled_reduction_is_seen_though_not_in_the_ledger() -> None:
    plan = family.plan("cosma", ProductShape(8, 8, 8, 4), Choice(Grid(1, 1, 4)))
    found = run_message_ranks(
        4, lambda comm, seen: multiply(plan, comm, seen, torch.float32, (1.0, 0.0)), Doubled
    )
    for rank, (error, seen, entered) in enumerate(found):
        assert error <= 1
        assert entered == tuple(plan.moved(rank))
        assert seen == tuple(2 * words for words in entered)


@pytest.mark.parametrize("algorithm", ["auto", "cannon", "summa_25d"])
def test_the_gradient_is_the_adjoint(algorithm: str) -> None:
    """<dA, A'> + <dB, B'> = <A' B + A B', Y> for random directions A' and B'."""

    def body(comm: Communicator, _: Seen) -> None:
        layouts = [
            block_rows(7, 5, comm.size),
            block_cyclic(5, 6, (1, comm.size), (2, 2)),
            block_cols(7, 6, comm.size),
        ]
        a, b, y = (matrix.random(x, comm, i, torch.float64) for i, x in enumerate(layouts))
        ways = [matrix.random(x, comm, 7 + i, torch.float64) for i, x in enumerate(layouts[:2])]
        whole_a, whole_b, whole_y, way_a, way_b = (x.gather_everywhere() for x in (a, b, y, *ways))
        for x in (a, b):
            x.storage.requires_grad_()
        product = relayout(differentiable_matmul(a, b, algorithm), y.layout)
        (product.storage * y.storage).sum().backward()
        found = torch.zeros(1, dtype=torch.float64)
        for x, way in zip((a, b), ways, strict=True):
            assert x.storage.grad is not None
            found += (x.storage.grad * way.storage).sum()
        comm.allreduce(found)
        expected = ((way_a @ whole_b + whole_a @ way_b) * whole_y).sum()
        torch.testing.assert_close(found[0], expected)

    run_message_ranks(3, body)
