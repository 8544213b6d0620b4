"""Local steps against simulations of their definitions, on threads that stand for ranks."""

import math
from typing import Any

import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import DataParallelConfig
from dist_ml.data_parallel.averagers import PeriodicAverager
from dist_ml.data_parallel.daso import DasoAverager
from dist_ml.data_parallel.flat_parameters import FlatParameters
from dist_ml.data_parallel.plateau import Plateau

N = 23


def start(rank: int) -> torch.Tensor:
    return torch.arange(N, dtype=torch.float64) * (rank + 1)


def moved(rank: int, step: int) -> torch.Tensor:
    """What rank's own optimizer adds in a step."""
    return torch.cos(torch.arange(N, dtype=torch.float64) + 3 * rank + step)


class Local:
    """One rank's parameter, optimizer (one that adds what it is told), and averager."""

    def __init__(self, comm: Communicator, config: DataParallelConfig, **daso: Any) -> None:
        self.rank = comm.rank
        self.parameter = torch.nn.Parameter(start(comm.rank))
        self.optimizer = torch.optim.SGD([self.parameter], lr=1.0, momentum=0.5)
        flat = FlatParameters([self.parameter], comm)
        allreduce = family.make("ring", comm)
        self.averager: PeriodicAverager | DasoAverager
        if daso:
            self.averager = DasoAverager(flat, self.optimizer, allreduce, config, **daso)
        else:
            self.averager = PeriodicAverager(flat, self.optimizer, allreduce, config)

    def step(self, number: int, loss: float = 1.0) -> None:
        with torch.no_grad():
            self.parameter += moved(self.rank, number)
        self.averager.after_update(loss)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_periodic_averages_every_so_many_steps(ranks: int) -> None:
    def body(comm: Communicator) -> list[torch.Tensor]:
        local = Local(comm, DataParallelConfig("periodic", period=3))
        seen = []
        for number in range(7):
            local.step(number)
            seen.append(local.parameter.detach().clone())
        return seen

    found = run_ranks(ranks, body)
    expected = [start(rank) for rank in range(ranks)]
    for number in range(7):
        expected = [x + moved(rank, number) for rank, x in enumerate(expected)]
        if number % 3 == 2:
            expected = [torch.stack(expected).mean(0)] * ranks
        for rank in range(ranks):
            torch.testing.assert_close(found[rank][number], expected[rank])


def merged(x: list[torch.Tensor], sent: list[torch.Tensor], waited: int) -> list[torch.Tensor]:
    total = torch.stack(sent).sum(0)
    return [(2 * waited * value + total) / (2 * waited + len(sent)) for value in x]


def daso(
    ranks: int, steps: int, warmup: int, cooldown: int, period: int
) -> list[list[torch.Tensor]]:
    """The definition, in one process: merge what was sent `period` steps before, then send."""
    x = [start(rank) for rank in range(ranks)]
    sent: list[torch.Tensor] | None = None
    waited, history = 0, []
    for number in range(1, steps + 1):
        x = [value + moved(rank, number - 1) for rank, value in enumerate(x)]

        if number <= warmup or number > steps - cooldown:
            if sent is not None:
                x, sent = merged(x, sent, waited), None
            x = [torch.stack(x).mean(0)] * ranks
        else:
            waited += 1
            if sent is None or waited >= period:
                x = merged(x, sent, waited) if sent is not None else x
                sent, waited = list(x), 0
        history.append(list(x))
    return history


CONFIG = DataParallelConfig("daso", period=3, warmup_steps=2, cooldown_steps=2)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_daso_is_its_definition(ranks: int) -> None:
    def body(comm: Communicator) -> list[torch.Tensor]:
        local = Local(comm, CONFIG, num_nodes=ranks, num_steps=14)
        seen = []
        for number in range(14):
            local.step(number)
            seen.append(local.parameter.detach().clone())
        local.averager.close()
        return seen

    found = run_ranks(ranks, body)
    for number, expected in enumerate(daso(ranks, 14, 2, 2, 3)):
        for rank in range(ranks):
            torch.testing.assert_close(found[rank][number], expected[rank])
    assert all(torch.equal(found[rank][-1], found[0][-1]) for rank in range(ranks))


@pytest.mark.parametrize("at", [2, 5, 7, 13])
def test_daso_goes_on_from_its_state_also_with_parameters_under_way(at: int) -> None:
    def body(comm: Communicator) -> tuple[torch.Tensor, torch.Tensor]:
        whole, first, second = (Local(comm, CONFIG, num_nodes=2, num_steps=14) for _ in range(3))
        for number in range(14):
            whole.step(number)
        for number in range(at):
            first.step(number)
        second.parameter.data.copy_(first.parameter.data)
        second.averager.load_state_dict(first.averager.state_dict())
        states = zip(first.averager.tensors(), second.averager.tensors(), strict=True)
        for state, same in states:
            same.values.copy_(state.values)
        for number in range(at, 14):
            second.step(number)
        for local in (whole, first, second):
            local.averager.close()
        return whole.parameter.detach(), second.parameter.detach()

    for expected, found in run_ranks(2, body):
        assert torch.equal(expected, found)


def test_a_plateau_halves_the_period() -> None:
    def body(comm: Communicator) -> list[float]:
        config = DataParallelConfig("daso", period=8, plateau_steps=2)
        local = Local(comm, config, num_nodes=2, num_steps=50)
        periods = []
        for number in range(12):
            local.step(number, loss=1.0)
            periods.append(local.averager.diagnostics()["period"])
        local.averager.close()
        return periods

    periods = run_ranks(2, body)[0]
    assert periods == [8, 8, 8, 4, 4, 2, 2, 1, 1, 1, 1, 1]


def test_momenta_are_averaged_with_the_parameters() -> None:
    def body(comm: Communicator) -> torch.Tensor:
        local = Local(comm, DataParallelConfig("periodic", period=1))
        local.parameter.grad = torch.full((N,), float(comm.rank), dtype=torch.float64)
        local.optimizer.step()
        local.averager.after_update(1.0)
        momentum: torch.Tensor = local.optimizer.state[local.parameter]["momentum_buffer"]
        return momentum

    for momentum in run_ranks(3, body):
        torch.testing.assert_close(momentum, torch.ones(N, dtype=torch.float64))


class TestPlateau:
    def test_never_without_a_window(self) -> None:
        plateau = Plateau(0)
        assert not any(plateau.reached(1.0) for _ in range(10))

    def test_only_where_the_mean_has_stopped_falling(self) -> None:
        plateau = Plateau(3)
        losses = [3, 2, 1, 1.9, 1.9, 1.9, 1.0, 1.0, 1.0]
        assert [plateau.reached(loss) for loss in losses] == [False] * 9
        assert [plateau.reached(loss) for loss in (0.995, 0.995, 0.995)] == [False, False, True]

    def test_goes_on_from_its_state(self) -> None:
        one, other = Plateau(2), Plateau(2)
        losses = [math.sin(number) + 2 for number in range(9)]
        told = [one.reached(loss) for loss in losses[:5]]
        other.load_state_dict(one.state_dict())
        assert [other.reached(loss) for loss in losses[5:]] == [
            one.reached(loss) for loss in losses[5:]
        ]
        assert len(told) == 5
