"""Sharded products on real ranks: right against float64, and their words those of the plan."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError, DataError
from dist_ml.gemm import family, matrix, redistribution, shards
from dist_ml.gemm.autograd import matmul as differentiable_matmul
from dist_ml.gemm.autograd import relayout
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.family import GEMMS
from dist_ml.gemm.grid import Grid, Tiles
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.layouts import (
    block_2d,
    block_3d,
    block_25d,
    block_cols,
    block_cyclic,
    block_rows,
    on_one_rank,
)
from dist_ml.gemm.matrix import ShardedMatrix
from dist_ml.gemm.multiply import Gemm, matmul, plan_for
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.reference import error_over_bound
from dist_ml.kernels.product import local_product

SIZES = [1, 2, 3, 5, 7, 8, 16, 31, 64, 100, 129, 257]
DTYPES = {torch.float32: (4, 4), torch.float64: (8, 8), torch.bfloat16: (2, 4)}
ORDERS = tuple(itertools.product([False, True], repeat=2))
PRODUCT = local_product("torch")


def moved(world: Communicator, call) -> tuple[int, int, int]:
    """Words sent and received and messages that the ledger entered during `call`."""
    before = world.traffic.snapshot()
    call()
    tallies = world.traffic.since(before).values()
    return (
        sum(t.words_sent for t in tallies),
        sum(t.words_received for t in tallies),
        sum(t.messages for t in tallies),
    )


def operand(layout: Layout, world: Communicator, seed: int, dtype: torch.dtype) -> ShardedMatrix:
    """A random matrix in `layout`; where that is column-major, as the transpose view of a stored
    one.
    """
    if layout.column_major:
        return matrix.random(layout.transposed, world, seed, dtype).T
    return matrix.random(layout, world, seed, dtype)


def check_product(
    world: Communicator, plan: Plan, dtype: torch.dtype, alpha: float, beta: float
) -> None:
    """The product is right, and moved what the plan says."""
    a, b = operand(plan.layout_a, world, 1, dtype), operand(plan.layout_b, world, 2, dtype)
    c = matrix.random(plan.layout_c, world, 3, dtype)
    wholes = [x.gather_everywhere() for x in (a, b, c)]
    gemm = Gemm(plan, world, PRODUCT)
    assert moved(world, lambda: gemm(a, b, c, alpha, beta)) == tuple(plan.moved(world.rank)), plan
    gemm.free()
    assert error_over_bound(c.gather_everywhere(), *wholes, alpha, beta) <= 1, plan


@pytest.mark.mpi
@pytest.mark.parametrize("name", list(GEMMS))
def test_products_are_right_and_move_what_was_planned(name: str, world: Communicator) -> None:
    draw = random.Random(f"{name} {world.size}")
    for orders, dtype in zip(ORDERS, itertools.cycle(DTYPES), strict=False):
        m, n, k = (draw.choice(SIZES) for _ in range(3))
        alpha, beta = draw.choice([(1.0, 0.0), (2.0, -1.0), (0.5, 1.0)])
        product_shape = ProductShape(m, n, k, world.size, *DTYPES[dtype])
        panel = draw.choice([None, 1, 7, 32])
        choice = Choice(panel=panel if "panel" in GEMMS[name].honours else None)
        plan = family.plan(name, product_shape, choice, Orders(*orders))
        if draw.random() < 0.3:
            plan = family.plan(
                name, replace(product_shape, memory=plan.working_bytes), None, Orders(*orders)
            )
        check_product(world, plan, dtype, alpha, beta)


@pytest.mark.mpi
def test_products_in_tiles_are_right_and_move_what_was_planned(world: Communicator) -> None:
    draw = random.Random(world.size)
    grids = [
        Grid(pm, pn, pk)
        for pm, pn, pk in itertools.product(range(1, world.size + 1), repeat=3)
        if pm * pn * pk == world.size
    ]
    dtypes = itertools.cycle(DTYPES)
    for grid, orders in itertools.product(grids, ORDERS):
        dtype = next(dtypes)
        m, n, k = (draw.choice([5, 16, 31, 64]) for _ in range(3))
        alpha, beta = draw.choice([(1.0, 0.0), (0.5, 1.0)])
        choice = Choice(
            grid=grid,
            panel=draw.choice([None, 3]),
            tiles=Tiles(draw.randint(1, 4), draw.randint(1, 3)),
        )
        plan = family.plan(
            "cosma", ProductShape(m, n, k, world.size, *DTYPES[dtype]), choice, Orders(*orders)
        )
        plan = family.plan(
            "cosma", replace(plan.shape, memory=plan.working_bytes), choice, Orders(*orders)
        )
        check_product(world, plan, dtype, alpha, beta)


@pytest.mark.mpi
def test_operands_in_any_layout_are_redistributed(world: Communicator) -> None:
    a = matrix.random(block_rows(37, 29, world.size), world, 1)
    b = matrix.random(block_cyclic(29, 41, (1, world.size), (3, 5)), world, 2)
    c = matrix.random(block_cols(37, 41, world.size), world, 3)
    wholes = [x.gather_everywhere() for x in (a, b, c)]
    plan = plan_for(a, b)
    words = sum(
        redistribution.moved_words(x.layout, layout)
        for x, layout in ((a, plan.layout_a), (b, plan.layout_b))
    )
    words += redistribution.moved_words(c.layout, plan.layout_c) + redistribution.moved_words(
        plan.layout_c, c.layout
    )
    gemm = Gemm(plan, world, PRODUCT)
    sent, _, _ = moved(world, lambda: gemm(a, b, c, 2.0, 0.5))
    gemm.free()
    assert sum(world.allgather_objects(sent)) == words + sum(
        plan.moved(rank).sent for rank in range(world.size)
    )
    assert error_over_bound(c.gather_everywhere(), *wholes, 2.0, 0.5) <= 1


@pytest.mark.mpi
def test_redistribution_between_any_two_layouts(world: Communicator) -> None:
    size = world.size
    kinds = [
        block_rows(11, 13, size),
        block_2d(11, 13, (1, size)),
        block_cyclic(11, 13, (size, 1), (2, 3)),
        block_25d(11, 13, (1, 1, size)),
        block_25d(11, 13, (1, 1, size), replicated=True),
        block_3d(11, 13, (1, 1, size), (2, 1, 0)),
        on_one_rank(11, 13),
        block_cyclic(13, 11, (1, size), (2, 2)).transposed,
    ]
    for source, target in itertools.product(kinds, repeat=2):
        start = matrix.random(source, world, 5)
        found: list[ShardedMatrix] = []
        sent, received, _ = moved(world, lambda: found.append(start.to(target)))  # noqa: B023
        assert torch.equal(found[0].storage, matrix.random(target, world, 5).storage)
        expected = redistribution.receive_words(source, target, world.rank, size)
        if source != target:
            assert received == sum(expected) - expected[world.rank]
            assert (
                sent
                == sum(redistribution.send_words(source, target, world.rank, size))
                - expected[world.rank]
            )


@pytest.mark.mpi
def test_scatter_and_gather(world: Communicator) -> None:
    whole = torch.arange(35.0).view(5, 7) if world.rank == 0 else None
    scattered = matrix.scatter(
        whole, block_cyclic(5, 7, (world.size, 1), (2, 2)), world, torch.float32
    )
    assert torch.equal(scattered.gather_everywhere(), torch.arange(35.0).view(5, 7))
    assert torch.equal(scattered.T.gather_everywhere(), torch.arange(35.0).view(5, 7).T)
    assert torch.equal(
        matrix.shard(torch.arange(35.0).view(5, 7), scattered.layout, world).storage,
        scattered.storage,
    )


@pytest.mark.mpi
def test_shards_on_disk_know_their_layout(world: Communicator, tmp_path: Path) -> None:
    folder = Path(world.broadcast_object(str(tmp_path)))
    layout = block_rows(9, 4, world.size)
    stored = matrix.random(layout, world, 3, torch.float64)
    shards.save(stored, folder)
    assert torch.equal(shards.load(folder, layout, world).storage, stored.storage)
    with pytest.raises(DataError, match="holds another layout"):
        shards.load(folder, block_cols(9, 4, world.size), world)
    with pytest.raises(DataError, match="float64, not"):
        shards.load(folder, layout, world, torch.float32)
    with pytest.raises(DataError, match="can't be read"):
        shards.load(folder / "nowhere", layout, world)


@pytest.mark.mpi
@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1)])
def test_empty_and_tiny_products(shape: tuple[int, int, int], world: Communicator) -> None:
    m, n, k = shape
    for name in GEMMS:
        a, b = (
            matrix.random(block_rows(m, k, world.size), world, 1),
            matrix.random(block_rows(k, n, world.size), world, 2),
        )
        product = matmul(a, b, name, product=PRODUCT).gather_everywhere()
        torch.testing.assert_close(product, a.gather_everywhere() @ b.gather_everywhere())


@pytest.mark.mpi
def test_what_does_not_fit_is_refused(world: Communicator) -> None:
    a, b = (
        matrix.random(block_rows(4, 5, world.size), world, 1),
        matrix.random(block_rows(4, 3, world.size), world, 2),
    )
    with pytest.raises(ConfigError, match="A's columns must be B's rows"):
        matmul(a, b)
    with pytest.raises(ConfigError, match=r"were started; start as many or choose a smaller grid"):
        matrix.random(block_rows(4, 5, world.size + 1), world, 1)
    with pytest.raises(ConfigError, match="its storage has shape"):
        ShardedMatrix(a.layout, world, torch.empty(1000))
    plan = plan_for(a, matrix.random(block_rows(5, 3, world.size), world, 2))
    gemm = Gemm(plan, world, PRODUCT)
    with pytest.raises(ConfigError, match="but the plan is for"):
        gemm(a, b)
    with pytest.raises(ConfigError, match="convert one of them"):
        gemm(a, matrix.random(block_rows(5, 3, world.size), world, 2, torch.float64))
    gemm.free()


@pytest.mark.mpi
def test_the_gradient_is_the_adjoint(world: Communicator) -> None:
    """<A' B + A B', Y> = <A', Y B^T> + <B', A^T Y> for random directions, in layouts that differ
    from the plan's.
    """
    layouts = (
        block_rows(13, 7, world.size),
        block_cyclic(7, 11, (1, world.size), (2, 2)),
        block_cols(13, 11, world.size),
    )
    a, b, y = (
        matrix.random(layout, world, seed, torch.float64) for seed, layout in enumerate(layouts)
    )
    a_dot, b_dot = (
        matrix.random(a.layout, world, 7, torch.float64),
        matrix.random(b.layout, world, 8, torch.float64),
    )
    a.storage.requires_grad_()
    b.storage.requires_grad_()
    product = relayout(differentiable_matmul(a, b), y.layout)
    (product.storage * y.storage).sum().backward()
    assert a.storage.grad is not None
    assert b.storage.grad is not None
    local = (a.storage.grad * a_dot.storage).sum() + (b.storage.grad * b_dot.storage).sum()
    right = total(local.detach(), world)
    whole_a, whole_b, whole_y = (
        matrix.random(x.layout, world, i, torch.float64).gather_everywhere()
        for i, x in enumerate((a, b, y))
    )
    left = (
        (a_dot.gather_everywhere() @ whole_b + whole_a @ b_dot.gather_everywhere()) * whole_y
    ).sum()
    torch.testing.assert_close(right, left)


def total(x: torch.Tensor, world: Communicator) -> torch.Tensor:
    x = x.clone()
    world.allreduce(x)
    return x
