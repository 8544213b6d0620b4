"""The ranks' part of `dist-ml bench operator_crossover`: training steps in 1-D and 2-D layouts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dist_ml.bench.configured import from_arguments
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.measure.compare import compare
from dist_ml.operator_parallel.objective import ParallelObjective
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

LAYOUTS = ("1d", "2d")


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """By batch and layout: seconds of a step in each round; words of the rank that sent most, in
    the ledger; and those that the objective states.
    """
    found: dict[str, Any] = {}
    for batch, train in arguments["trains"].items():
        trainers = {layout: _trainer(comm, from_arguments(train), layout) for layout in LAYOUTS}
        steps = {layout: _step(trainer) for layout, trainer in trainers.items()}
        words = {layout: _words(comm, steps[layout]) for layout in LAYOUTS}
        objective = {layout: _objective(trainers[layout], int(batch)) for layout in LAYOUTS}
        found[batch] = {
            "words": words,
            "objective": {
                layout: max(comm.allgather_objects(own)) for layout, own in objective.items()
            },
            "seconds": compare(comm, steps, arguments["rounds"]),
        }
        for trainer in trainers.values():
            trainer.close()
            trainer.mesh.free()
    return found


def _trainer(comm: Communicator, train: TrainConfig, layout: str) -> Trainer:
    config = dataclasses.replace(
        train,
        mesh=MeshConfig(1, 1, comm.size),
        operator_parallel=dataclasses.replace(train.operator_parallel, layout=layout),
    )
    return build_trainer(config, build_mesh(config, comm))


def _step(trainer: Trainer) -> Callable[[], None]:
    count = 0

    def step() -> None:
        nonlocal count
        trainer.step(0, count % trainer.sampler.steps_per_epoch)
        count += 1

    return step


def _words(comm: Communicator, step: Callable[[], None]) -> int:
    """That the rank with most sends along the operator axis in one step."""
    before = comm.traffic.snapshot()
    step()
    sent = sum(
        tally.words_sent
        for (axis, _), tally in comm.traffic.since(before).items()
        if axis == "operator"
    )
    most: int = max(comm.allgather_objects(sent))
    return most


def _objective(trainer: Trainer, batch: int) -> int:
    objective = trainer.objective
    return objective.words(batch) if isinstance(objective, ParallelObjective) else 0
