"""Torch's default process group on our backend, for tests on ranks, and a model that they train."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dist_ml.comm.communicator import Communicator
from dist_ml.process_group.process_group import NAME
from dist_ml.process_group.registration import register

LIMIT = timedelta(seconds=60)


@contextmanager
def default_group(world: Communicator) -> Iterator[None]:
    """Collective."""
    if NAME.upper() not in dist.Backend._plugins:
        register(world)
    if dist.is_initialized():  # gloo's, of tests that compare with it
        dist.destroy_process_group()
    dist.init_process_group(NAME, timeout=LIMIT)
    assert (dist.get_rank(), dist.get_world_size()) == (world.rank, world.size)
    yield
    dist.destroy_process_group()


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 8), torch.nn.Linear(8, 4)
    ).double()


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(17 * step + rank)).double()
