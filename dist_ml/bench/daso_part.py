"""The ranks' part of `dist-ml bench daso`: training runs, and their evaluation after each."""

import statistics
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dist_ml.bench.configured import from_arguments
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.measure.compare import seconds_per_call
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

Kept: TypeAlias = list[tuple[float, int, torch.Tensor]]  # seconds, steps, parameters
DENSE = "dense"


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One run after the other: the seconds to each target, merging included; None where it was not
    reached.
    """
    configs = [from_arguments(train) for train in arguments["trains"]]
    for config in {each.data_parallel.name: each for each in configs}.values():
        first = build_trainer(config, build_mesh(config, comm))
        first.step(0, 0)  # connects and compiles
        first.close()
    return [_run(comm, config, arguments) for config in configs]


def _run(comm: Communicator, config: TrainConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    trainer = build_trainer(config, build_mesh(config, comm))
    kept, seconds = _train(comm, trainer, config.epochs, arguments)
    trainer.close()
    reached: dict[str, float | None] = {str(target): None for target in arguments["targets"]}
    merge = _Merge(comm, config)
    merges: list[float] = []
    for at, _, parameters in kept:
        merges.append(merge(parameters))
        vector_to_parameters(parameters, trainer.model.parameters())
        accuracy = trainer.evaluate(trainer.dataset.test).accuracy
        assert accuracy is not None
        for target in arguments["targets"]:
            if reached[str(target)] is None and accuracy >= target:
                reached[str(target)] = at + merges[-1]
        if None not in reached.values():
            break
    return {
        "reached": reached,
        "steps": kept[-1][1],
        "trained_seconds": seconds,
        "merge_seconds": statistics.median(merges),
    }


class _Merge:
    """Makes vectors their mean over all ranks; seconds of the slowest. Dense ranks are equal
    already, and pay nothing. Collective.
    """

    def __init__(self, comm: Communicator, config: TrainConfig) -> None:
        self._comm = comm
        self._equal = config.data_parallel.name == DENSE
        self._allreduce = family.make(config.allreduce.name, comm)

    def __call__(self, vector: torch.Tensor) -> float:
        if self._equal:
            return 0.0
        return seconds_per_call(self._comm, lambda: self._allreduce(vector, "mean"))


def _train(
    comm: Communicator, trainer: Trainer, epochs: int, arguments: Mapping[str, Any]
) -> tuple[Kept, float]:
    """Train for the given seconds of rank 0's clock, or until the run is over; the parameters at
    the first step's end after each multiple of `every_seconds`, and at the end.
    """
    kept: Kept = []
    last, per_epoch = epochs * trainer.sampler.steps_per_epoch, trainer.sampler.steps_per_epoch
    clock = np.zeros(1)
    comm.barrier()
    start = time.perf_counter()
    for step in range(last):
        trainer.step(*divmod(step, per_epoch))
        clock[0] = time.perf_counter() - start
        comm.broadcast(clock)
        elapsed = float(clock[0])
        over = elapsed >= arguments["seconds"] or step + 1 == last
        if over or elapsed >= arguments["every_seconds"] * (len(kept) + 1):
            with torch.no_grad():
                kept.append((elapsed, step + 1, parameters_to_vector(trainer.model.parameters())))
        if over:
            break
    return kept, float(clock[0])
