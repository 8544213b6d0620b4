"""Going on from memory when a rank has died (docs/shrink.md)."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from dist_ml.comm.survivors import Survivors
from dist_ml.config.train import TrainConfig
from dist_ml.errors import PeerLostError
from dist_ml.train import logs
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.stop_signals import StopSignals
from dist_ml.train.trainer import Trainer

if TYPE_CHECKING:
    from dist_ml.train.run import Run


def train_on(
    run: "Run", opened: AbstractContextManager[None], survivors: Survivors
) -> dict[str, Any]:
    """Train to the end within `opened`, the run's folder; whoever dies, the others go on."""
    opening: AbstractContextManager[Run] = _with(opened, run)
    while True:
        try:
            with opening as run:
                return run.train()
        except (PeerLostError, RuntimeError) as error:
            if not survivors.explain(error):
                raise
            opening = _taken_over(run, survivors, error)


@contextlib.contextmanager
def _with(opened: AbstractContextManager[None], run: "Run") -> "Iterator[Run]":
    with opened:
        yield run


@contextlib.contextmanager
def _taken_over(before: "Run", survivors: Survivors, failure: BaseException) -> "Iterator[Run]":
    """The run on the ranks that are left after `failure`, from the last step's border. Collective
    over them.
    """
    start = time.monotonic()
    logs.stop()  # ranks, and the names of their logs, will be others
    survivors.shrink(failure)
    run = before.followed_by(partial(_rebuilt, survivors))
    # MPI writes no more into what the failed step was exchanging, which its frames have kept.
    del before, failure
    with run.reopened():
        for peer in survivors.lost:
            run.tell_loss(peer, time.monotonic() - start)
        survivors.lost.clear()
        yield run


def _rebuilt(
    survivors: Survivors, config: TrainConfig, before: Trainer, signals: StopSignals
) -> Trainer:
    """A trainer on a mesh of the ranks that live, with the state of `before`, which is closed.

    Cost: what building a trainer takes, opening the data included, and for a while the memory of a
    second model and its optimizer.
    """
    mesh_config = dataclasses.replace(config.mesh, data=None)
    smaller = dataclasses.replace(config, ranks=None, mesh=mesh_config)
    mesh = build_mesh(smaller, survivors.world)
    trainer = build_trainer(smaller, mesh, signals.told, agree=survivors.agree)
    trainer.load_state_dict(before.state_dict())
    for new, old in zip(trainer.tensors(), before.tensors(), strict=True):
        new.values.copy_(old.values)
    before.close()
    before.mesh.free()
    return trainer
