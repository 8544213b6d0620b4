"""Which steps are taken: the same answer on all ranks, whoever sees that something is wrong."""

import math

import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.data_parallel.reduced_gradients import Full, Local, ReducedGradients, Sharded
from dist_ml.errors import NonFiniteError
from dist_ml.partition import Range
from dist_ml.train.guard import Guard

ALONE = Communicator(Loopback())


def admits(guard: Guard, reduced: ReducedGradients, epoch: int = 0, step: int = 0) -> bool:
    """As a step does: clip, or leave out."""
    factor = guard.factor(reduced)
    if factor is None:
        guard.refuse(reduced, epoch, step)
    elif factor < 1:
        reduced.scale(factor)
    return factor is not None


def full(values: list[float], loss: float = 1.0, kind: type[Full] = Full) -> Full:
    return kind(torch.tensor(values), torch.tensor([loss]))


def test_a_gradient_beyond_the_limit_is_scaled_to_it() -> None:
    flat = torch.tensor([3.0, 4.0])
    guard = Guard(ALONE, 1.0, "stop")
    assert admits(guard, Full(flat, torch.zeros(1)))
    torch.testing.assert_close(flat, torch.tensor([0.6, 0.8]))
    assert admits(guard, Full(flat, torch.zeros(1)))
    torch.testing.assert_close(flat, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    ("reduced", "limit"),
    [
        (full([1.0], loss=math.nan), None),
        (full([math.inf]), 1.0),
        (full([math.nan], kind=Local), 1.0),
    ],
    ids=["loss", "gradient", "local gradient"],
)
def test_what_is_not_finite_stops_the_run_on_all_ranks(reduced: Full, limit: float | None) -> None:
    with pytest.raises(NonFiniteError, match="nonfinite=skip") as caught:
        admits(Guard(ALONE, limit, "stop"), reduced, 2, 7)
    assert caught.value.agreed
    assert "epoch 2, step 7" in str(caught.value)


def test_a_skipped_step_is_rolled_back_and_a_taken_one_is_not() -> None:
    class Remembering(Full):
        rolled_back = 0

        def roll_back(self) -> None:
            self.rolled_back += 1

    guard = Guard(ALONE, None, "skip")
    bad = Remembering(torch.tensor([math.inf]), torch.zeros(1))
    good = Remembering(torch.tensor([1.0]), torch.zeros(1))
    assert (admits(guard, bad), bad.rolled_back) == (False, 1)
    assert (admits(guard, good), good.rolled_back) == (True, 0)


def test_without_limit_and_skipping_the_gradient_is_not_looked_at() -> None:
    class Unread(ReducedGradients):
        def norm(self) -> float:
            raise AssertionError("a pass over the gradient that nobody asked for")

        def scale(self, factor: float) -> None:
            raise AssertionError("scaled")

    assert admits(Guard(ALONE, None, "stop"), Unread(torch.zeros(1)))


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_local_steps_leave_a_step_out_together(ranks: int) -> None:
    """Rank 0's gradient alone is not finite."""

    def body(world: Communicator) -> bool:
        reduced = full([math.inf if world.rank == 0 else 1.0], kind=Local)
        return admits(Guard(world, 1.0, "skip"), reduced)

    assert run_ranks(ranks, body) == [False] * ranks


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_shards_are_clipped_by_the_norm_of_the_whole(ranks: int) -> None:
    def body(world: Communicator) -> tuple[float, float]:
        shard = torch.full((2,), 3.0, dtype=torch.float64)
        reduced = Sharded(shard, Range(0, len(shard)), torch.zeros(1), world)
        norm = reduced.norm()
        assert admits(Guard(world, 1.0, "stop"), reduced)
        return norm, float(shard[0])

    whole = 3 * math.sqrt(2 * ranks)
    for norm, value in run_ranks(ranks, body):
        assert norm == pytest.approx(whole)
        assert value == pytest.approx(3 / whole)


def test_one_bad_shard_is_everybodys() -> None:
    def body(world: Communicator) -> bool:
        shard = torch.tensor([math.nan if world.rank == 1 else 1.0])
        return admits(
            Guard(world, None, "skip"),
            Sharded(shard, Range(0, len(shard)), torch.zeros(1), world),
        )

    assert run_ranks(3, body) == [False] * 3
