"""`DataParallel` in a user's own loop: the numbers of one process on all the batches, whatever the
loop does with its gradients.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from thread_world import run_ranks

from dist_ml import DataParallel, SparseConfig
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.data_parallel.module_checks import require_alike
from dist_ml.errors import CommunicationError, ConfigError

NUM_STEPS = 4
Optimizer = Callable[[Iterator[torch.nn.Parameter]], torch.optim.Optimizer]


class Model(torch.nn.Module):
    """Tied weights, a buffer that training changes, and a part that only some inputs reach."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Linear(6, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.extra = torch.nn.Linear(6, 6)
        self.never = torch.nn.Linear(3, 3)
        self.out = torch.nn.Linear(6, 6, bias=False)
        self.out.weight = self.embed.weight
        self.double()

    def forward(self, x: torch.Tensor, extra: bool = False) -> torch.Tensor:
        y = torch.tanh(self.embed(x))
        z: torch.Tensor = self.out(y + self.extra(y) if extra else y)
        return z


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(100 * step + rank)).double()


def sgd(parameters: Iterator[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def adam(parameters: Iterator[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def one_process(size: int, make: Optimizer, reaches: Callable[[int], bool]) -> dict[str, Any]:
    """The mean of all ranks' losses, backward in one process."""
    model = Model(0)
    optimizer = make(model.parameters())
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        for rank in range(size):
            (model(batch(step, rank), reaches(rank)).square().mean() / size).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    ("options", "set_to_none"),
    [
        ({}, True),
        ({}, False),
        ({"allreduce": "ring", "overlap": "thread", "bucket_bytes": 64}, True),
        ({"allreduce": "ring", "overlap": "poll", "bucket_bytes": 64}, False),
        ({"sparse": SparseConfig("split_allgather", density=1.0, dense_below=0)}, True),
    ],
    ids=["plain", "in place", "thread", "poll", "sparse"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_the_numbers_of_one_process(
    size: int, options: dict[str, Any], set_to_none: bool, make: Optimizer
) -> None:
    def reaches(rank: int) -> bool:
        return rank == 1  # `extra` has a gradient there alone

    models = [Model(rank) for rank in range(size)]  # seeding isn't for threads

    def body(comm: Communicator) -> dict[str, Any]:
        model = DataParallel(
            models[comm.rank], comm, **{"allreduce": "native", **options}, find_unused=True
        )
        optimizer = make(model.parameters())
        for step in range(NUM_STEPS):
            optimizer.zero_grad(set_to_none)
            model(batch(step, comm.rank), reaches(comm.rank)).square().mean().backward()
            optimizer.step()
        model.close()
        return model.module.state_dict()

    expected = one_process(size, make, reaches)
    unused = [name for name in expected if name.startswith("never") and not set_to_none]
    for found in run_ranks(size, body):
        for name in expected:
            if name not in unused:  # where `.grad` stays, it is zero and not None, as for torch
                torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


def test_passes_without_exchange_gather_until_the_next_with_one() -> None:
    models = [Model(0), Model(1)]

    def body(comm: Communicator) -> list[torch.Tensor]:
        model = DataParallel(models[comm.rank], comm, allreduce="native")
        with model.no_sync():
            for step in range(2):
                model(batch(step, comm.rank), True).square().mean().backward()
        model(batch(2, comm.rank)).square().mean().backward()  # doesn't reach `extra`
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model = Model(0)
    for step in range(3):
        for rank in range(2):
            (model(batch(step, rank), step < 2).square().mean() / 2).backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for found in run_ranks(2, body):
        reached = [gradient for gradient in found if gradient.any()]
        assert len(reached) == len(expected)
        for gradient, wanted in zip(reached, expected, strict=True):
            torch.testing.assert_close(gradient, wanted)


class Mixed(torch.nn.Module):
    """Parameters of two dtypes, one of them not trained, and running statistics."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(6, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.last = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(x))
        total: torch.Tensor = hidden.sum() + self.last(hidden.bfloat16()).sum()
        return total


def test_parameters_of_several_dtypes_and_the_buffers_of_rank_0() -> None:
    models = [Mixed(0), Mixed(1)]

    def body(comm: Communicator) -> list[torch.Tensor]:
        module = models[comm.rank]
        model = DataParallel(module, comm, allreduce="native", average=False)
        for step in range(2):
            model(batch(step, comm.rank).float()).backward()
            if step == 0:
                model.zero_grad()
        return [p.grad for p in module.parameters() if p.grad is not None]

    first, second = run_ranks(2, body)
    for mine, other in zip(first, second, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    plain = [Mixed(0), Mixed(0)]  # rank 1 has rank 0's statistics at each pass
    for step in range(2):
        plain[1].norm.load_state_dict(plain[0].norm.state_dict())
        for rank, module in enumerate(plain):
            module.zero_grad()
            module(batch(step, rank).float()).backward()
    pairs = zip(*(module.parameters() for module in plain), strict=True)
    sums = [a.grad + b.grad for a, b in pairs if a.grad is not None and b.grad is not None]
    for mine, expected in zip(first, sums, strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-2, atol=2e-2)
    assert models[0].first.bias.grad is None


class Quarter(torch.nn.Module):
    """A parameter that MPI can't sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float8_e5m2))


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (lambda _: torch.nn.Linear(2, 2).requires_grad_(False), {}, "no parameter that is"),
        (lambda _: torch.nn.Linear(2, 2, device="meta"), {}, "weight is on meta"),
        (lambda _: Quarter(), {}, "can't be summed"),
        (lambda _: torch.nn.Linear(2, 2), {"allreduce": "fastest"}, "allreduce.name=fastest"),
        (lambda _: torch.nn.Linear(2, 2), {"sparse": 2.0}, "density=2.0 must be"),
    ],
    ids=["frozen", "device", "dtype", "allreduce", "density"],
)
def test_what_cannot_be_wrapped_is_told_to_all_ranks(
    build: Callable[[int], torch.nn.Module], options: dict[str, Any], words: str
) -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(ConfigError, match=words):
            DataParallel(build(comm.rank), comm, **options)

    run_ranks(2, body)


def named(**layers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleDict(layers)


def linear(*sizes: int, **options: Any) -> torch.nn.Module:
    return torch.nn.Linear(*sizes, **options)


def tied(tie: bool) -> torch.nn.Module:
    model = named(a=linear(2, 2, bias=False), b=linear(2, 2, bias=False))
    if tie:
        model["b"].weight = model["a"].weight  # type: ignore[index]
    return model


@pytest.mark.parametrize(
    ("first", "other", "words"),
    [
        (linear(2, 2), linear(3, 2), "[2, 2] float32 on ranks 0, 2; parameter weight [2, 3]"),
        (linear(2, 2), linear(2, 2).double(), "on ranks 0, 2; parameter weight [2, 2] float64"),
        (linear(2, 2), linear(2, 2, bias=False), "bias [2] float32 on ranks 0, 2; nothing more"),
        (
            named(a=linear(2, 2), b=linear(2, 2)),
            named(b=linear(2, 2), a=linear(2, 2)),
            "parameter a.weight [2, 2] float32 on ranks 0, 2; parameter b.weight",
        ),
        (linear(2, 2), linear(2, 2).requires_grad_(False), "on rank 1"),
        (
            torch.nn.BatchNorm1d(2),
            torch.nn.BatchNorm1d(2, track_running_stats=False),
            "buffer running_mean [2] float32 on ranks 0, 2; nothing more on rank 1",
        ),
        (tied(True), tied(False), "nothing more on ranks 0, 2; parameter b.weight"),
    ],
    ids=["shape", "dtype", "number", "order", "trained", "buffer", "tied"],
)  # fmt: skip
def test_models_that_differ_among_ranks_are_told_to_all_of_them(
    first: torch.nn.Module, other: torch.nn.Module, words: str
) -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            require_alike(other if comm.rank == 1 else first, comm)
        assert caught.value.agreed
        require_alike(first, comm)

    run_ranks(3, body)


def test_one_rank_alone_is_the_module_as_it_is() -> None:
    module = Model(0)
    model = DataParallel(module, Communicator(Loopback()))
    model(batch(0, 0)).square().mean().backward()
    assert module.never.weight.grad is None
    assert module.out.weight.grad is not None


def test_after_a_backward_pass_that_raised_nothing_is_trained_on() -> None:
    """Its exchange has begun, and the next one would never be asked for."""
    models = [torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)) for _ in range(2)]

    def body(comm: Communicator) -> None:
        model = DataParallel(models[comm.rank], comm, allreduce="native")
        first, last = models[comm.rank]
        hidden = first(torch.ones(1, 2))
        hidden.register_hook(lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            last(hidden).sum().backward()
        with pytest.raises(CommunicationError, match="raised before its end"):
            model(torch.ones(1, 2))

    run_ranks(2, body)
