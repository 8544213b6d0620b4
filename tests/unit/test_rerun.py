"""fault.rerun: steps that jump are computed again, and why they did is told."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeline_world import Trained, on_mesh, settings, train
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.fault import FaultConfig
from dist_ml.config.reproduce import ReproduceConfig
from dist_ml.config.train import MeshConfig
from dist_ml.errors import ConfigError, MachineError
from dist_ml.train.jump_detector import JumpDetector
from dist_ml.train.rerun import suspects
from dist_ml.train.trainer import Trainer

# A jump is held against at least two steps before.
FAULT = FaultConfig(rerun=True, rerun_window=4, rerun_deviations=20.0)
CONFIG = settings(hidden=(6,), precision="fp32", fault=FAULT)
STEPS = 6
AT = 4  # the step that jumps

Fault = Callable[[int, int], bool]  # (rank, which computation of the step) -> is it wrong?


def trained(size: int, wrong: Fault = lambda *_: False, **changes: Any) -> list[Trained]:
    """Steps on `size` replicas; the loss of step AT is a hundred times too large where `wrong`."""
    config = on_mesh(dataclasses.replace(CONFIG, **changes), size, 1)
    return run_ranks(size, lambda comm: train(comm, config, STEPS, faulty(comm, wrong)))


def faulty(comm: Communicator, wrong: Fault) -> Callable[[Trainer], None]:
    def into(trainer: Trainer) -> None:
        objective, calls = trainer.objective, {"step": 0}
        loss_sum = objective.loss_sum

        def changed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = loss_sum(outputs, targets)
            if not torch.is_grad_enabled() or trainer.num_steps != AT:
                return loss
            calls["step"] += 1
            return loss * 100 if wrong(comm.rank, calls["step"]) else loss

        object.__setattr__(objective, "loss_sum", changed)  # a frozen dataclass

    return into


def told(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.message for record in caplog.records)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dist_ml.train.rerun")


@pytest.mark.parametrize("choices", [{}, {"reproduce": ReproduceConfig(12)}])
def test_a_transient_fault_leaves_no_trace(
    choices: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(3, **choices)[0]
    assert told(caplog) == ""
    found = trained(3, lambda rank, call: rank == 1 and call == 1, **choices)[0]
    assert found.losses == expected.losses
    assert found.weights is not None
    assert expected.weights is not None
    for name, tensor in expected.weights.items():
        assert torch.equal(found.weights[name], tensor)
    assert "the fault was transient" in told(caplog)


def test_a_persistent_fault_ends_the_run_and_names_the_replica(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(MachineError, match="a persistent fault: replica 1 computes wrongly") as e:
        trained(3, lambda rank, _: rank == 1)
    assert e.value.agreed
    assert "transient" not in told(caplog)


def test_a_real_jump_is_told_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    found = trained(3, lambda *_: True)[0]
    assert "the jump is real" in told(caplog)
    caplog.clear()
    expected = trained(3, lambda *_: True, fault=FaultConfig())[0]
    assert told(caplog) == ""
    assert found.losses == expected.losses
    assert found.losses[AT] > 50
    trained(1, lambda *_: True)
    assert "one replica can't tell" in told(caplog)


def test_jumps() -> None:
    detector = JumpDetector(window=6, deviations=5.0)
    assert detector.jumps(math.nan)
    assert not detector.jumps(1e9)  # held against nothing
    for value in (1.0, 1.2, 0.9, 1.1, math.inf):
        detector.add(value)
    assert not detector.jumps(1.5)
    assert not detector.jumps(-9.0)
    assert detector.jumps(3.0)


@pytest.mark.parametrize(
    ("losses", "ranks"),
    [
        ([(1, 2), (2, 3), (3, 1)], []),
        ([(1, 2), (9, 9), (3, 1)], [1]),  # wrong itself, and as its neighbour
        ([(1, 2), (9, 3), (3, 1)], [0, 1]),  # its own share alone: it, or who computed it again
        ([(1, 2), (9, 1)], [0, 1]),
    ],
)
def test_suspects(losses: list[tuple[float, float]], ranks: list[int]) -> None:
    assert suspects(losses) == ranks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_parallel": {"name": "periodic"}}, "fault.rerun=true has no effect with data_par"),
        ({"fault": {"rerun": False}}, "fault.rerun_window=4 has no effect with fault.rerun=false"),
        ({"mesh": {"pipeline": 2}}, "fault.rerun is not built for models on several ranks"),
    ],
)
def test_refused(changes: dict[str, dict[str, Any]], words: str) -> None:
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(1, 1, 1))
    for key, values in changes.items():
        group = dataclasses.replace(getattr(config, key), **values)
        config = dataclasses.replace(config, **{key: group})
    size = config.mesh.pipeline or 1
    with pytest.raises(ConfigError, match=words):
        run_ranks(size, lambda comm: train(comm, config))
