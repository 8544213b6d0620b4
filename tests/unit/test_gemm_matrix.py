"""Sharded matrices on threads: filled, laid out anew, gathered, kept on disk, and refused."""

import itertools
from pathlib import Path

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.thread_level import LEVELS
from dist_ml.errors import ConfigError, DataError, MachineError
from dist_ml.gemm import family, matrix, redistribution, shards
from dist_ml.gemm.autograd import matmul as differentiable_matmul
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.grid import Grid
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
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.kernels.product import local_product
from tests.message_world import Seen, run_message_ranks

PRODUCT = local_product("torch")


def layouts(rows: int, cols: int, size: int) -> list[Layout]:
    return [
        block_rows(rows, cols, size),
        block_2d(rows, cols, (1, size)),
        block_cyclic(rows, cols, (size, 1), (2, 3)),
        block_25d(rows, cols, (1, 1, size)),
        block_25d(rows, cols, (1, 1, size), replicated=True),
        block_3d(rows, cols, (1, 1, size), (2, 1, 0)),
        on_one_rank(rows, cols),
        block_cyclic(cols, rows, (1, size), (2, 2)).transposed,
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_redistributions_move_what_is_planned_and_nothing_else(size: int) -> None:
    def body(comm: Communicator, seen: Seen) -> None:
        for source, target in itertools.product(layouts(7, 8, size), repeat=2):
            start, expected = (matrix.random(x, comm, 5).storage for x in (source, target))
            comm.barrier()
            seen.clear()
            found = ShardedMatrix(source, comm, start).to(target)
            assert torch.equal(found.storage, expected)
            sent, received = (
                count(source, target, comm.rank, size)
                for count in (redistribution.send_words, redistribution.receive_words)
            )
            if source == target:
                assert seen.as_tuple() == (0, 0, 0)
                continue
            assert seen.sent == sum(sent) - sent[comm.rank]
            assert seen.received == sum(received) - received[comm.rank]
            assert seen.messages == sum(words > 0 for words in sent) - (sent[comm.rank] > 0)

    run_message_ranks(size, body)


def test_scatter_gather_and_shard_agree() -> None:
    whole = torch.arange(35.0).view(5, 7)

    def body(comm: Communicator, _: Seen) -> None:
        layout = block_cyclic(5, 7, (comm.size, 1), (2, 2))
        own = whole if comm.rank == 0 else None
        scattered = matrix.scatter(own, layout, comm, torch.float32)
        assert torch.equal(scattered.storage, matrix.shard(whole, layout, comm).storage)
        assert torch.equal(scattered.gather_everywhere(), whole)
        assert torch.equal(scattered.T.gather_everywhere(), whole.T)
        gathered = scattered.gather()
        assert (gathered is not None) == (comm.rank == 0)

    run_message_ranks(3, body)


def test_a_matrix_is_the_same_in_any_layout_on_any_number_of_ranks() -> None:
    def body(comm: Communicator, _: Seen) -> list[torch.Tensor]:
        return [
            matrix.random(layout, comm, 9, torch.float64).gather_everywhere()
            for layout in layouts(6, 5, comm.size)
        ]

    first, *others = [x for size in (1, 4) for x in run_message_ranks(size, body)[0]]
    assert all(torch.equal(first, other) for other in others)
    assert first.abs().max() < 1
    assert first.unique().numel() == 30


def test_filling_in_parts_is_filling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(comm: Communicator, _: Seen) -> torch.Tensor:
        return matrix.random(block_rows(9, 4, 1), comm, 2).storage

    whole = run_message_ranks(1, body)[0]
    monkeypatch.setattr(matrix, "_FILL_WORDS", 8)
    assert torch.equal(run_message_ranks(1, body)[0], whole)


def test_local_is_the_block_and_there_is_none_of_dealt_elements() -> None:
    def body(comm: Communicator, _: Seen) -> None:
        rows = matrix.random(block_rows(5, 3, comm.size), comm, 1)
        assert rows.local.shape == (rows.layout.block_shape(comm.rank))
        assert torch.equal(rows.T.local, rows.local.T)
        assert torch.equal(
            matrix.zeros(rows.layout, comm).storage, torch.zeros(rows.storage.numel())
        )
        with pytest.raises(AssertionError, match="does not store whole blocks"):
            _ = matrix.random(block_25d(4, 4, (1, 1, comm.size)), comm, 1).local

    run_message_ranks(2, body)


def test_shards_on_disk_know_what_they_hold(tmp_path: Path) -> None:
    layout = block_rows(9, 4, 2)

    def body(comm: Communicator, _: Seen) -> None:
        stored = matrix.random(layout, comm, 3, torch.float64)
        shards.save(stored, tmp_path / "kept")
        assert torch.equal(shards.load(tmp_path / "kept", layout, comm).storage, stored.storage)
        with pytest.raises(DataError, match="holds another layout"):
            shards.load(tmp_path / "kept", block_cols(9, 4, 2), comm)
        with pytest.raises(DataError, match="float64, not"):
            shards.load(tmp_path / "kept", layout, comm, torch.float32)
        with pytest.raises(DataError, match="can't be read"):
            shards.load(tmp_path / "nowhere", layout, comm)

    run_message_ranks(2, body)
    first, second = sorted((tmp_path / "kept").iterdir())

    def renamed(comm: Communicator, _: Seen) -> None:
        with pytest.raises(DataError, match="rank 1's shard, not rank 0's"):
            shards.load(tmp_path / "kept", layout, comm)

    def damaged(comm: Communicator, _: Seen) -> None:
        with pytest.raises(DataError, match="can't be read"):
            shards.load(tmp_path / "kept", layout, comm)

    second.replace(first)
    run_message_ranks(1, lambda comm, seen: renamed(_as_one_of_two(comm), seen))
    first.write_bytes(first.read_bytes()[:20])
    run_message_ranks(1, lambda comm, seen: damaged(_as_one_of_two(comm), seen))


def _as_one_of_two(comm: Communicator) -> Communicator:
    comm.size = 2
    return comm


def test_what_does_not_fit_is_refused() -> None:
    def body(comm: Communicator, _: Seen) -> None:
        a = matrix.random(block_rows(4, 5, comm.size), comm, 1)
        with pytest.raises(ConfigError, match="A's columns must be B's rows"):
            matmul(a, matrix.random(block_rows(4, 3, comm.size), comm, 2))
        with pytest.raises(ConfigError, match=r"were started; start as many or choose a smaller"):
            matrix.random(block_rows(4, 5, comm.size + 1), comm, 1)
        with pytest.raises(ConfigError, match="its storage has shape"):
            ShardedMatrix(a.layout, comm, torch.empty(1000))
        with pytest.raises(ConfigError, match="can't be laid out as"):
            a.to(block_rows(5, 5, comm.size))
        b = matrix.random(block_rows(5, 3, comm.size), comm, 2)
        gemm = Gemm(plan_for(a, b), comm, PRODUCT)
        with pytest.raises(ConfigError, match="but the plan is for"):
            gemm(a, a)
        with pytest.raises(ConfigError, match="convert one of them"):
            gemm(a, matrix.random(b.layout, comm, 2, torch.float64))
        with pytest.raises(ConfigError, match="C is 5 x 3, but the plan is for 4 x 3"):
            gemm(a, b, b)
        with pytest.raises(ConfigError, match="the plan is for 3 ranks, but 2 were started"):
            Gemm(family.plan("cosma", ProductShape(4, 3, 5, 3)), comm)
        with pytest.raises(ConfigError, match="int64"):
            plan_for(matrix.zeros(a.layout, comm, torch.int64), b)

    run_message_ranks(2, body)


def test_replicas_have_no_gradient() -> None:
    def body(comm: Communicator, _: Seen) -> None:
        a = matrix.random(block_25d(4, 4, (1, 1, comm.size), replicated=True), comm, 1)
        with pytest.raises(ConfigError, match="2 replicas of each element, whose gradients"):
            differentiable_matmul(a, matrix.random(block_rows(4, 4, comm.size), comm, 2))

    run_message_ranks(2, body)


@pytest.mark.parametrize("level", LEVELS[:3])
def test_panels_on_a_thread_need_an_mpi_with_threads(level: str) -> None:
    shape = ProductShape(8, 8, 64, 4)

    def body(comm: Communicator, _: Seen) -> None:
        comm.transport.thread_level = level if comm.rank == 2 else "MULTIPLE"  # type: ignore[misc]
        with pytest.raises(MachineError, match=f"MPI_THREAD_MULTIPLE, .* MPI_THREAD_{level}"):
            Gemm(family.plan("cosma", shape, Choice(Grid(2, 2, 1), panel=8)), comm)
        Gemm(family.plan("cosma", shape, Choice(Grid(2, 2, 1), panel=64)), comm).free()

    run_message_ranks(4, body)


def test_a_new_result_lies_as_planned_and_an_old_one_keeps_its_layout() -> None:
    def body(comm: Communicator, _: Seen) -> None:
        a = matrix.random(block_rows(6, 5, comm.size), comm, 1)
        b = matrix.random(block_cols(5, 7, comm.size), comm, 2)
        gemm = Gemm(plan_for(a, b), comm, PRODUCT)
        fresh = gemm(a, b)
        assert fresh.layout == gemm.plan.layout_c
        kept = matrix.zeros(block_cyclic(6, 7, (comm.size, 1), (1, 2)), comm)
        kept.storage.fill_(float("nan"))  # beta = 0 forgets it
        assert gemm(a, b, kept) is kept
        assert torch.equal(kept.gather_everywhere(), fresh.gather_everywhere())
        twice = gemm(a, b, kept, 1.0, 1.0)
        torch.testing.assert_close(twice.gather_everywhere(), 2 * fresh.gather_everywhere())

    run_message_ranks(3, body)
