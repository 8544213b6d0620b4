"""`dist_ml.save` and `load`: a loop that goes on from a checkpoint, on any number of ranks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_world import run_ranks

import dist_ml
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError, DataError

LONE = Communicator(Loopback())
Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9)),
    "groups": lambda p: torch.optim.Adagrad([{"params": [q], "lr": 0.1} for q in p]),
}


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 4, bias=False)  # its gradient would be rounding alone
    return torch.nn.Sequential(first, torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def batch(step: int) -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(step))


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.param_groups[0]["lr"] *= 0.9
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loop_goes_on_on_any_number_of_ranks(name: str, tmp_path: Path) -> None:
    make = OPTIMIZERS[name]

    def begin(comm: Communicator) -> None:
        model = dist_ml.DataParallel(models[comm.rank], comm, allreduce="native")
        optimizer = make(model.parameters())
        train(model, optimizer, range(3))
        dist_ml.save(tmp_path, 3, model, optimizer, mesh=comm, extra={"epoch": 1})
        model.close()

    def go_on(comm: Communicator) -> dict[str, torch.Tensor]:
        model = dist_ml.DataParallel(models[comm.rank], comm, allreduce="native")
        optimizer = make(model.parameters())
        assert dist_ml.load(tmp_path, model, optimizer, mesh=comm) == (3, {"epoch": 1})
        train(model, optimizer, range(3, 6))
        model.close()
        return model.module.state_dict()

    models = [module() for _ in range(3)]
    run_ranks(3, begin)
    alone = module()
    train(alone, make(alone.parameters()), range(6))
    for size in (1, 2):
        models = [module() for _ in range(size)]
        for found in run_ranks(size, go_on):
            torch.testing.assert_close(found, alone.state_dict())


def test_nothing_is_loaded_where_nothing_was_saved(tmp_path: Path) -> None:
    assert dist_ml.load(tmp_path / "none", module(), mesh=LONE) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: (m[:2], None), "2.bias is in only one of the two"),
        (lambda m: (m.double(), None), "its 0.weight is \\[4, 3\\] torch.float32, but"),
        (lambda m: (m, torch.optim.Adam(m.parameters())), "holds a SGD .* than this Adam"),
        (lambda m: (m, torch.optim.SGD(m[0].parameters(), lr=1.0)), "of other parameters"),
        (
            lambda m: (m, torch.optim.SGD([{"params": [p]} for p in m.parameters()], lr=1.0)),
            "holds 1 parameter groups, and the optimizer has 5",
        ),
    ],
)
def test_another_model_or_optimizer_is_told_and_left_as_it_was(
    change: Any, words: str, tmp_path: Path
) -> None:
    first = module()
    optimizer = OPTIMIZERS["sgd"](first.parameters())
    train(first, optimizer, range(1))
    dist_ml.save(tmp_path, 1, first, optimizer, mesh=LONE)
    other, its_optimizer = change(module())
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(DataError, match=words):
        dist_ml.load(tmp_path, other, its_optimizer, mesh=LONE)
    torch.testing.assert_close(other.state_dict(), before)


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds what JSON can't"):
        dist_ml.save(tmp_path, 1, module(), mesh=LONE, extra={"rng": object()})
    with pytest.raises(ConfigError, match="step=-1 must be at least 0"):
        dist_ml.save(tmp_path, -1, module(), mesh=LONE)
    stranger = torch.optim.SGD(module().parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="a parameter that the model hasn't"):
        dist_ml.save(tmp_path, 1, module(), stranger, mesh=LONE)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    model = module()
    for step in (1, 2):
        dist_ml.save(tmp_path, step, model, mesh=LONE)
    (file,) = (tmp_path / "step-2").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-2 is damaged .*step-1 is loaded"):
        assert dist_ml.load(tmp_path, model, mesh=LONE) == (1, {})


def test_a_checkpoint_without_an_optimizer_is_told(tmp_path: Path) -> None:
    model = module()
    dist_ml.save(tmp_path, 1, model, mesh=LONE)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(DataError, match="holds no optimizer"):
        dist_ml.load(tmp_path, model, optimizer, mesh=LONE)
