"""`dist-ml bench trace`: what tracing adds to a step, on several meshes, and how long the timeline
then takes to write.
"""

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, require_meshes, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.trace import TraceConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import compare, ratio, slowest
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.step_trace import StepTrace

_MOST_OVER = 1.02


@dataclass(frozen=True)
class TraceBench:
    """What to measure."""

    train: TrainConfig
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch_size: int  # of a step, over all ranks
    meshes: tuple[tuple[int, ...], ...]  # [data, pipeline, operator] ranks
    steps: int  # measured together
    rounds: int  # of alternation

    def __post_init__(self) -> None:
        require_meshes(self.meshes)
        if self.steps < 1 or self.rounds < 1:
            raise ConfigError(f"steps={self.steps} and rounds={self.rounds} must be at least 1")


def run(config: TraceBench, worlds: Worlds) -> Result:
    train = with_widths(config.train, config.widths, config.batch_size)
    records: list[Record] = []
    checks = []
    for sizes in config.meshes:
        own = dataclasses.replace(train, mesh=MeshConfig(*sizes))
        arguments = {
            "train": to_arguments(own),
            "steps": config.steps,
            "rounds": config.rounds,
        }
        found = worlds.measure("trace", arguments, ranks=math.prod(sizes))
        mesh = " x ".join(map(str, sizes))
        over = ratio(found["traced"], found["plain"])
        records.append(
            {
                "mesh": mesh,
                "step_ms": 1e3 * statistics.median(found["plain"]),
                "traced_ms": 1e3 * statistics.median(found["traced"]),
                "over": over.median,
                "low": over.low,
                "high": over.high,
                "steps": found["steps"],
                "write_ms": 1e3 * found["write"],
            }
        )
        checks.append(
            Check(f"traced step over a plain one, {mesh}", over.median, _MOST_OVER, "lower")
        )
    return Result("trace", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step, plain and traced, by round; how many were traced, and the seconds that the
    slowest rank takes to write them.
    """
    number = arguments["steps"]
    config = from_arguments(arguments["train"])
    plain = build_trainer(config, build_mesh(config, comm))
    traced = dataclasses.replace(config, trace=TraceConfig(True, skip=0))
    trainer = build_trainer(traced, build_mesh(traced, comm))
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        trace = StepTrace(traced.trace, trainer, Path(folder))
        trace.turn()

        def run_traced() -> None:
            steps = trainer.next_steps(number)
            for _ in range(number):
                trace.before_step()
                trace.after_step(next(steps).number)

        calls = {"plain": lambda: list(plain.next_steps(number)), "traced": run_traced}
        seconds = compare(comm, calls, arguments["rounds"])
        steps, start = trainer.num_steps, time.perf_counter()
        trace.close()
        write = slowest(comm, time.perf_counter() - start)
    by_step = {name: [each / number for each in rounds] for name, rounds in seconds.items()}
    return {**by_step, "steps": steps, "write": write}


BENCH = Bench("what tracing adds to a step", TraceBench, run, {"trace": measure}, ranks=2)
