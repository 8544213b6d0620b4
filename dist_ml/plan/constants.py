"""What steps take beside their operators, in Python and autograd: for each operator, for each
micro-batch, and for each step. Fitted to steps of small models that compute next to nothing.
"""

import dataclasses
import statistics
import time
from itertools import islice

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import (
    CommConfig,
    LRScheduleConfig,
    MeshConfig,
    OptimizerConfig,
    TrackerConfig,
    TrainConfig,
)
from dist_ml.plan.machine import Constants, Processor
from dist_ml.plan.networked import Machine
from dist_ml.plan.step_plan import StepPlan, plan_step
from dist_ml.plan.step_seconds import step_seconds
from dist_ml.train.build import build_mesh, build_trainer

_STEPS, _WARM_UP = 60, 10
_DEPTHS, _PIECES = (1, 3), 4
_DATA = DataConfig(
    "synthetic", num_train=4096, num_test=1, num_features=16, num_outputs=4,
    task="classification", teacher_width=1, noise=0.0, seed=0,
)  # fmt: skip


def with_constants(processor: Processor, comm: Communicator) -> Processor:
    """`processor` with the constants, those of the slowest rank. Collective."""
    machine = Machine(processor, cores=processor.ranks * processor.threads, ranks_per_node=1)
    few, many, cut = (
        _left(comm, machine, config)
        for config in (_small(_DEPTHS[0]), _small(_DEPTHS[1]), _small(_DEPTHS[0], _PIECES))
    )
    an_operator = max(0.0, (many[1] - few[1]) / (many[0] - few[0]))
    more = cut[1] - few[1] - (cut[0] - few[0]) * an_operator
    a_pass = max(0.0, more / (_PIECES - 1))
    step = max(0.0, few[1] - few[0] * an_operator - a_pass)
    return dataclasses.replace(processor, constants=Constants(an_operator, a_pass, step))


def _left(comm: Communicator, machine: Machine, config: TrainConfig) -> tuple[int, float]:
    """Operators of a step, and its seconds without them, of the slowest rank."""
    plan = plan_step(config, 1)
    comm.barrier()
    left = _measured(config) - step_seconds(plan, machine).total
    return _num_operators(plan), max(comm.allgather_objects(left))


def _small(depth: int, pieces: int = 1) -> TrainConfig:
    """A Transformer of so many layers on a few numbers."""
    return TrainConfig(
        name="calibrate", folder="calibrate", seed=0, ranks=None, epochs=1, batch_size=4 * pieces,
        accumulation=pieces, precision="fp32", clip_norm=None, nonfinite="stop", log_every=1,
        evaluate_every=1, mesh=MeshConfig(1, 1, 1),
        model=ModelConfig("transformer", activation="gelu", width=16, heads=2, depth=depth),
        data=_DATA, optimizer=OptimizerConfig("sgd", lr=1e-3, weight_decay=0.0),
        lr_schedule=LRScheduleConfig("constant", 0.0), comm=CommConfig(False, False),
        tracker=TrackerConfig(False, False),
    )  # fmt: skip


def train_shortly() -> None:
    """Have loaded all that training loads."""
    _measured(_small(1), 2)


def _measured(config: TrainConfig, num_steps: int | None = None) -> float:
    """Median seconds of a step on this rank alone, beside the others."""
    trainer = build_trainer(config, build_mesh(config, Communicator(Loopback())))
    taken = []
    for index in range(num_steps or _STEPS):
        start = time.perf_counter()
        trainer.step(0, index % trainer.sampler.steps_per_epoch)
        taken.append(time.perf_counter() - start)
    trainer.close()
    return statistics.median(islice(taken, min(_WARM_UP, len(taken) - 1), None))


def _num_operators(plan: StepPlan) -> int:
    return plan.schedule.num_microbatches * sum(
        len(block.forward.operators) + len(block.backward.operators)
        for stage in plan.stages
        for block in stage.blocks
    )
