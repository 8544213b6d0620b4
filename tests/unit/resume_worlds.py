"""Runs of nine steps that are broken off and go on, for the tests of that."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from train_worlds import changed

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.train import logs, metrics
from dist_ml.train.run import train_run
from dist_ml.train.step import TrainStep
from dist_ml.train.stop_signals import StopSignals

TIMES = ("seconds", "samples_per_second", "communication_share", "traffic")


class BrokenOffError(Exception):
    """What stands for a kill."""


def train(folder: Path, every: int = 2, asynchronous: bool = False, **changes: Any) -> Any:
    """A run of 9 steps, 3 an epoch; a line of metrics for every other step."""
    checkpoint = CheckpointConfig(every, asynchronous=asynchronous)
    chosen = {"epochs": 3, "log_every": 2, "resume": "auto", **changes}
    config = changed(folder=str(folder), checkpoint=checkpoint, **chosen)
    try:
        with StopSignals() as signals:
            return train_run(config, Communicator(Loopback()), signals=signals)
    finally:
        logs.stop()


def broken_off(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, every: int = 2) -> None:
    """A run that ends before its step number `at`."""
    with monkeypatch.context() as broken:
        break_off(broken, at)
        with pytest.raises(BrokenOffError):
            train(folder, every)


def break_off(monkeypatch: pytest.MonkeyPatch, at: int, what: Any = None) -> None:
    """Have the run do `what` (default: end) before its step number `at`."""
    step = TrainStep.run

    def run(self: TrainStep, *batch: Any) -> Any:
        if self.num_steps == at:
            if what is None:
                raise BrokenOffError
            what()
        return step(self, *batch)

    monkeypatch.setattr(TrainStep, "run", run)


def told(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics without times."""
    lines = metrics.read(folder / "metrics.jsonl")
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "checkpoints" / "model.safetensors")
