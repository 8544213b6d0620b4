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
