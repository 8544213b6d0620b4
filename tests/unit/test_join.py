"""`DataParallel.join`: ranks with different numbers of batches, against one process."""

from typing import Any

import pytest
import torch
from thread_world import run_ranks

from dist_ml import DataParallel
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError


def module(normed: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(4) if normed else torch.nn.Identity()
    return torch.nn.Sequential(torch.nn.Linear(3, 4), norm, torch.nn.Linear(4, 2)).double()


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(9 * step + rank)).double()


def train(
    comm: Communicator, model: DataParallel, num_steps: int
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Weights and momenta after two epochs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        with model.join(optimizer.step):
            for step in range(num_steps):
                optimizer.zero_grad()
                model(batch(step, comm.rank)).square().mean().backward()
                optimizer.step()
    model.close()
    moments = [state["momentum_buffer"] for state in optimizer.state.values()]
    return model.module.state_dict(), moments


@pytest.mark.parametrize("options", [{}, {"allreduce": "ring", "overlap": "thread"}])
@pytest.mark.parametrize("steps", [(1, 3), (3, 1), (2, 0, 3), (2, 2)])
def test_ranks_that_ran_out_add_zeros_and_end_alike(
    steps: tuple[int, ...], options: dict[str, Any]
) -> None:
    modules = [module() for _ in steps]

    def body(comm: Communicator) -> Any:
        model = DataParallel(modules[comm.rank], comm, **{"allreduce": "native", **options})
        return train(comm, model, steps[comm.rank])

    alone = module()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for step in [*range(max(steps))] * 2:
        optimizer.zero_grad()
        for rank, num_steps in enumerate(steps):
            if step < num_steps:
                (alone(batch(step, rank)).square().mean() / len(steps)).backward()
        optimizer.step()
    moments = [state["momentum_buffer"] for state in optimizer.state.values()]
    for found in run_ranks(len(steps), body):
        torch.testing.assert_close(found, (alone.state_dict(), moments))


def test_buffers_are_those_of_the_first_rank_that_goes_on() -> None:
    modules = [module(normed=True), module(normed=True)]

    def body(comm: Communicator) -> Any:
        model = DataParallel(modules[comm.rank], comm, allreduce="native")
        with model.join(lambda: None):
            for step in range(1 + 2 * comm.rank):
                model(batch(step, comm.rank)).sum().backward()
        return model.module[1].running_mean.clone()

    alone, (zero, one) = module(normed=True), run_ranks(2, body)
    alone(batch(0, 1))
    alone(batch(1, 1))
    torch.testing.assert_close(zero, alone[1].running_mean)  # before rank 1's last pass
    alone(batch(2, 1))
    torch.testing.assert_close(one, alone[1].running_mean)


def test_different_exchanges_are_told_on_all_ranks() -> None:
    modules = [module(normed=True), module(normed=True)]

    def body(comm: Communicator) -> str:
        model = DataParallel(modules[comm.rank], comm, allreduce="native")
        with pytest.raises(CommunicationError) as caught:
            passes(model, comm.rank)
        return str(caught.value)

    def passes(model: DataParallel, rank: int) -> None:
        with model.join(lambda: None):
            loss = model(batch(0, rank)).sum()
            if rank == 0:
                loss.backward()
            model(batch(1, rank))

    for words in run_ranks(2, body):
        assert "some ranks exchange gradients next and others buffers" in words
