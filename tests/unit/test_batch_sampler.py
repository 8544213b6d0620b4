"""Every rank's part of each global batch, for torch's DataLoader."""

from itertools import chain

import pytest
import torch
from thread_world import run_ranks
from torch.utils.data import DataLoader, TensorDataset

from dist_ml import BatchSampler
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.errors import ConfigError


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_samples", "drop_last", "steps"),
    [(40, False, [10] * 4), (44, False, [10] * 4 + [4]), (44, True, [10] * 4), (42, False, None)],
)
def test_ranks_share_each_batch_of_a_permutation(
    num_samples: int, drop_last: bool, steps: list[int] | None, size: int
) -> None:
    if steps is None:  # two samples left: a batch where every rank has one
        steps = [10] * 4 + [2] * (size <= 2)
    data = TensorDataset(torch.arange(num_samples))

    def epochs(comm: Communicator) -> list[list[list[int]]]:
        sampler = BatchSampler(data, 10, comm, seed=3, drop_last=drop_last)
        loader = DataLoader(data, batch_sampler=sampler)
        found = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            assert len(loader) == len(steps)
            assert [sampler.global_batch_size(step) for step in range(len(steps))] == steps
            found.append([ids.tolist() for (ids,) in loader])
        return found

    ranks = run_ranks(size, epochs)
    order = GlobalSampler(num_samples, 10, seed=3)
    for epoch in range(2):
        for step, parts in enumerate(zip(*(rank[epoch] for rank in ranks), strict=True)):
            assert all(parts)
            assert list(chain.from_iterable(parts)) == order.batch(epoch, step).tolist()
    assert ranks[0][0] != ranks[0][1]


def test_fewer_samples_than_ranks_are_refused() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(ConfigError, match="must be 3 or more"):
            BatchSampler(range(100), 2, comm)

    run_ranks(3, body)
