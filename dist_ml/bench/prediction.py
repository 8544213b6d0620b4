"""`dist-ml bench prediction`: how far what `dist-ml plan` says of a step's seconds is from what the
step takes. The machine is calibrated first, on models of other sizes than those that are predicted.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, require_meshes, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.launch.mpiexec import cores
from dist_ml.measure.compare import slowest
from dist_ml.plan.calibrate import calibrate
from dist_ml.plan.machine import Processor
from dist_ml.plan.networked import Machine
from dist_ml.plan.step_plan import plan_step
from dist_ml.plan.step_seconds import step_seconds
from dist_ml.train.build import build_mesh, build_trainer

_WARM_UP = 3


@dataclass(frozen=True)
class PredictionBench:
    """What to predict: every model at every batch on every mesh."""

    train: TrainConfig  # precision, seed and the like
    mlps: tuple[tuple[int, ...], ...]  # widths
    mlp_batches: tuple[int, ...]
    transformers: tuple[tuple[int, ...], ...]  # width, depth, heads, tokens
    transformer_batches: tuple[int, ...]
    meshes: tuple[tuple[int, ...], ...]  # data, pipeline, operator
    schedules: tuple[str, ...]  # in turn, of meshes with a pipeline
    steps: int  # measured
    mpi: str

    def __post_init__(self) -> None:
        require_meshes(self.meshes)


class _Model(NamedTuple):
    name: str
    train: TrainConfig


def run(config: PredictionBench, worlds: Worlds) -> Result:
    processors = {
        ranks: Processor.from_mapping(worlds.measure("calibrate", {}, ranks=ranks, mpi=config.mpi))
        for ranks in sorted({1, cores(), *map(prod, config.meshes)})
    }
    records: list[Record] = []
    for number, mesh in enumerate(config.meshes):
        models = list(_models(config, mesh, number))
        ranks = prod(mesh)
        measured = worlds.measure(
            "predicted steps",
            {"trains": [to_arguments(one.train) for one in models], "steps": config.steps},
            ranks=ranks,
            mpi=config.mpi,
        )
        processor = processors[max(each for each in processors if each <= ranks)]
        machine = Machine(processor, os.cpu_count() or 1, ranks)
        for model, seconds in zip(models, measured, strict=True):
            predicted = step_seconds(plan_step(model.train, ranks), machine).total
            records.append(
                {
                    "model": model.name,
                    "mesh": " x ".join(map(str, mesh)),
                    "predicted_ms": 1e3 * predicted,
                    "measured_ms": 1e3 * seconds,
                    "predicted over measured": predicted / seconds,
                }
            )
    return Result("prediction", records, checks_of(records))


def checks_of(records: Sequence[Record]) -> list[Check]:
    errors = sorted(abs(record["predicted over measured"] - 1) for record in records)
    nine_of_ten = errors[max(0, -(-9 * len(errors) // 10) - 1)]
    return [
        Check("configurations", len(records), 60, "higher"),
        Check("median error of predicted seconds", statistics.median(errors), 0.08, "lower"),
        Check("error that nine of ten are within", nine_of_ten, 0.20, "lower"),
    ]


def _models(config: PredictionBench, mesh: tuple[int, ...], number: int) -> Sequence[_Model]:
    found = []
    for widths in config.mlps:
        for batch in config.mlp_batches:
            name = f"mlp {'-'.join(map(str, widths))}, batch {batch}"
            found.append(_Model(name, with_widths(config.train, widths, batch)))
    for width, depth, heads, tokens in config.transformers:
        for batch in config.transformer_batches:
            model = ModelConfig(
                "transformer", activation="gelu", width=width, depth=depth, heads=heads
            )
            data = DataConfig("text", num_tokens=tokens, test_fraction=0.1)
            train = dataclasses.replace(config.train, model=model, data=data, batch_size=batch)
            found.append(_Model(f"transformer {width} x {depth}, batch {batch} x {tokens}", train))
    pipeline = PipelineConfig()
    if mesh[1] > 1:
        pipeline = PipelineConfig(config.schedules[number % len(config.schedules)])
    return [
        _Model(
            name,
            dataclasses.replace(
                train,
                mesh=MeshConfig(*mesh),
                pipeline=pipeline,
                allreduce=dataclasses.replace(train.allreduce, name="auto"),
            ),
        )
        for name, train in found
    ]


def measure_processor(comm: Communicator, _: Mapping[str, Any]) -> dict[str, Any]:
    return calibrate(comm, lambda _: None).to_mapping()


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[float]:
    """Median seconds of a step of each configuration, of the slowest rank."""
    found = []
    for mapping in arguments["trains"]:
        config = from_arguments(mapping)
        trainer = build_trainer(config, build_mesh(config, comm))
        taken = []
        for number in range(_WARM_UP + arguments["steps"]):
            place = divmod(number, trainer.sampler.steps_per_epoch)
            comm.barrier()
            start = time.perf_counter()
            trainer.step(*place)
            taken.append(time.perf_counter() - start)
        trainer.close()
        found.append(slowest(comm, float(np.median(taken[_WARM_UP:]))))
    return found


BENCH = Bench(
    "seconds of steps that dist-ml plan predicts, against those measured",
    PredictionBench,
    run,
    {"calibrate": measure_processor, "predicted steps": measure},
    ranks=1,
)
