"""`DataParallel` on real ranks: the numbers of one process, by each way to exchange."""

from typing import Any

import pytest
import torch

from dist_ml import DataParallel, SparseConfig
from dist_ml.comm.communicator import Communicator

pytestmark = pytest.mark.mpi
NUM_STEPS = 4
EXCHANGES: dict[str, dict[str, Any]] = {
    "auto": {},
    "shared memory": {"allreduce": "shared_memory"},
    "thread": {"allreduce": "ring", "overlap": "thread", "bucket_bytes": 256},
    "thread in shared memory": {
        "allreduce": "shared_memory",
        "overlap": "thread",
        "bucket_bytes": 256,
    },
    "sparse": {"sparse": SparseConfig("oktopk", density=1.0, dense_below=0)},
}


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 5)]
    return torch.nn.Sequential(*layers).double()


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(50 * step + rank)).double()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_numbers_of_one_process(exchange: str, world: Communicator) -> None:
    alone = model(0)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        for rank in range(world.size):
            (alone(batch(step, rank)).square().mean() / world.size).backward()
        optimizer.step()
    module = model(world.rank)
    wrapped = DataParallel(module, world, **EXCHANGES[exchange])
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        wrapped(batch(step, world.rank)).square().mean().backward()
        optimizer.step()
    wrapped.close()
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_ranks_with_different_numbers_of_batches(exchange: str, world: Communicator) -> None:
    """Rank r has r + 1: the sum of the gradients of those that have one, over all ranks."""
    alone, size = model(0), world.size
    for step in range(size):
        for rank in range(step, size):
            (alone(batch(step, rank)).square().mean() / size).backward()
    wrapped = DataParallel(model(0), world, **EXCHANGES[exchange])
    summed = [torch.zeros_like(parameter) for parameter in alone.parameters()]

    def add() -> None:
        for total, parameter in zip(summed, wrapped.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad

    with wrapped.join(add):
        for step in range(world.rank + 1):
            wrapped.zero_grad()
            wrapped(batch(step, world.rank)).square().mean().backward()
            add()
    wrapped.close()
    for total, parameter in zip(summed, alone.parameters(), strict=True):
        torch.testing.assert_close(total, parameter.grad, rtol=1e-10, atol=1e-12)
