"""ZeRO 1 and 2 on any number of ranks against the plain sum, and memory that is one part in P."""

import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.flat_parameters import FlatParameters
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sharded_reducers import Zero1Reducer, Zero2Reducer, optimizer_bytes
from dist_ml.partition import block

SHAPES = ((7, 3), (5,), (2, 2), (1,))


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in SHAPES]


def make(name: str, own: list[torch.nn.Parameter], comm: Communicator) -> GradientReducer:
    if name == "zero1":
        return Zero1Reducer(FlatGradients(own, 2), comm)
    return Zero2Reducer(own, 2, comm, bucket_bytes=48)


def backward(own: list[torch.nn.Parameter], rank: int, used: int) -> None:
    """Gradients that differ by rank; the last parameters get none where `used` is small."""
    total = sum(
        ((number + rank + 1) * p * torch.arange(p.numel()).view_as(p)).sum()
        for number, p in enumerate(own[:used])
    )
    total.backward()  # type: ignore[union-attr]


def expected(ranks: int, used: int) -> torch.Tensor:
    parts = [
        sum(
            (number + rank + 1) * torch.arange(p.numel(), dtype=torch.float64)
            for rank in range(ranks)
        )
        if number < used
        else torch.zeros(p.numel(), dtype=torch.float64)
        for number, p in enumerate(parameters())
    ]
    return torch.cat(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["zero1", "zero2"])
@pytest.mark.parametrize("used", [4, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shards_together_are_the_sum(name: str, used: int, ranks: int) -> None:
    def body(comm: Communicator) -> tuple[torch.Tensor, list[float], float]:
        own = parameters()
        reducer = make(name, own, comm)
        for step in range(2):  # the second must not add to the first
            reducer.begin()
            reducer.slots[1] += comm.rank + step
            reducer.start()
            backward(own, comm.rank, used)
            reduced = reducer.finish()
        norm = reduced.norm()
        reduced.scale(0.5)
        return reducer.shard.clone(), reduced.slots, norm  # type: ignore[attr-defined]

    found = run_ranks(ranks, body)
    total = expected(ranks, used)
    torch.testing.assert_close(torch.cat([shard for shard, _, _ in found]), total / 2)
    for _, slots, norm in found:
        assert slots == [0.0, sum(rank + 1 for rank in range(ranks))]
        assert norm == pytest.approx(float(total.norm()))


def test_stage_two_keeps_no_gradient_and_adds_up_micro_batches() -> None:
    def body(comm: Communicator) -> torch.Tensor:
        own = parameters()
        reducer = Zero2Reducer(own, 1, comm, bucket_bytes=48)
        reducer.begin()
        backward(own, comm.rank, 4)
        reducer.start()
        backward(own, comm.rank, 4)
        assert all(parameter.grad is None for parameter in own)
        reducer.finish()
        return reducer.shard.clone()

    torch.testing.assert_close(torch.cat(run_ranks(2, body)), 2 * expected(2, 4))


@pytest.mark.parametrize("ranks", [1, 3, 40])
def test_parameters_are_gathered_and_the_state_is_one_part_in_p(ranks: int) -> None:
    def body(comm: Communicator) -> tuple[list[float], int]:
        own = parameters()
        flat = FlatParameters(own, comm)
        optimizer = torch.optim.AdamW([flat.shard], lr=0.5)
        flat.shard.grad = torch.full_like(flat.shard, 1.0)
        optimizer.step()
        flat.gather()
        return torch.cat([p.detach().reshape(-1) for p in own]).tolist(), optimizer_bytes(optimizer)

    found = run_ranks(ranks, body)
    total = len(found[0][0])
    assert all(values == found[0][0] for values, _ in found)
    assert len(set(found[0][0])) == 1
    for rank, (_, held) in enumerate(found):
        assert held == 2 * 8 * block(total, ranks, rank).size
