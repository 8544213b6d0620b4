"""The ranks' part of `dist-ml bench overlap`: one model, trained with each way to exchange in
turn.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from dist_ml.bench.shared_model import Ddp, SharedModel
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.dense_reducer import DenseReducer, Overlap
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reduced_gradients import Full
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.measure.compare import alternate, seconds_per_call

NOTHING, AFTER, THREAD, POLL, BF16 = "no exchange", "after", "thread", "poll", "thread, bf16 wire"
NATIVE = "after, native"  # MPI's own allreduce: copies messages as gloo does
DDP, DDP_ALONE = "ddp gloo", "ddp, no_sync"
_LEARNING_RATE = 1e-4
_BACKWARD_PASSES = 5


class NoExchange(GradientReducer):
    """Leaves every rank with its own gradients."""

    def __init__(self, gradients: FlatGradients) -> None:
        self._gradients = gradients
        self.slots = gradients.slots

    def begin(self) -> None:
        self._gradients.begin()

    def finish(self) -> Full:
        self._gradients.complete()
        return Full(self._gradients.flat, self.slots)


class Clock(NoExchange):
    """Takes the seconds of each backward pass."""

    def __init__(self, gradients: FlatGradients) -> None:
        super().__init__(gradients)
        self._begun = 0.0
        self.seconds: list[float] = []

    def start(self) -> None:
        self._begun = time.perf_counter()

    def finish(self) -> Full:
        self.seconds.append(time.perf_counter() - self._begun)
        return super().finish()


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and processor seconds a step by candidate and round, and the seconds of a backward
    pass.
    """
    plain = family.make(arguments["algorithm"], comm)
    shared = SharedModel(
        arguments["widths"], arguments["batch"], "torch", _LEARNING_RATE, comm, plain.allocate
    )
    processor: dict[str, list[float]] = {name: [] for name in arguments["candidates"]}
    steps: dict[str, Callable[[], object]] = {}
    ddp: Ddp | None = None
    for name in arguments["candidates"]:
        if name in (DDP, DDP_ALONE):
            ddp = ddp or Ddp(arguments["widths"], arguments["batch"], _LEARNING_RATE, comm)
            steps[name] = ddp.step if name == DDP else ddp.step_alone
        else:
            reducer = _reducer(name, shared.gradients, arguments["algorithm"], comm)
            steps[name] = lambda reducer=reducer: shared.step(reducer)  # type: ignore[misc]

    def timed(name: str) -> float:
        before = time.process_time()
        seconds = seconds_per_call(comm, steps[name], arguments["steps"])
        processor[name].append((time.process_time() - before) / arguments["steps"])
        return seconds

    candidates = {name: (lambda name=name: timed(name)) for name in steps}
    alternate(candidates, 1)
    for used in processor.values():
        used.clear()
    return {
        "seconds": alternate(candidates, arguments["rounds"]),
        "processor": processor,
        "backward": _backward_seconds(comm, shared),
    }


def _reducer(
    name: str, gradients: FlatGradients, algorithm: str, comm: Communicator
) -> GradientReducer:
    if name == NOTHING:
        return NoExchange(gradients)
    wire = "bf16" if name == BF16 else "fp32"
    algorithm = "native" if name == NATIVE else algorithm
    overlaps: dict[str, Overlap] = {
        AFTER: "none",
        NATIVE: "none",
        THREAD: "thread",
        POLL: "poll",
        BF16: "thread",
    }
    return DenseReducer(gradients, family.make(algorithm, comm, wire), overlaps[name])  # type: ignore[arg-type]


def _backward_seconds(comm: Communicator, shared: SharedModel) -> float:
    """Of a backward pass without exchange: the median of a few steps."""
    clock = Clock(shared.gradients)
    comm.barrier()
    for _ in range(_BACKWARD_PASSES):
        shared.step(clock)
    return statistics.median(clock.seconds)
