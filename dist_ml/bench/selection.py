"""`dist-ml bench selection`: what finding 1 % of a gradient costs, against adding two vectors and
against sorting.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.residual import MomentumResidual, Residual
from dist_ml.data_parallel.selection import SELECTIONS, Selection, count_of
from dist_ml.data_parallel.selection_kernels import kernels, plain_kernels
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import alternate, ratio

ADD, TOPK, FUSED, PLAIN = "torch.add", "torch.topk", "fused pass", "torch operations"


@dataclass(frozen=True)
class SelectionBench:
    """What to select from."""

    num_elements: int  # float32
    density: float  # share of them to select
    threshold_steps: int  # between exact thresholds, where they are reused
    rounds: int  # of alternation
    # a selection runs in a row, each round: their mean holds the upkeep of the threshold
    steps: int

    def __post_init__(self) -> None:
        if self.steps % self.threshold_steps:
            raise ConfigError(
                f"steps={self.steps} must be a multiple of threshold_steps={self.threshold_steps}"
            )


def run(config: SelectionBench, worlds: Worlds) -> Result:
    seconds = worlds.measure("selection", vars(config), ranks=1)
    add, topk = seconds[ADD], seconds[TOPK]
    records = [
        {
            "candidate": name,
            "ms": 1e3 * statistics.median(times),
            "over_add": ratio(times, add).median,
            "topk_over": ratio(topk, times).median,
        }
        for name, times in seconds.items()
    ]
    reused = seconds["threshold"]
    checks = [
        Check("fused pass over torch.add", ratio(seconds[FUSED], add).median, 2.0, "lower"),
        Check("torch.topk over fused pass", ratio(topk, seconds[FUSED]).median, 25.0, "higher"),
        Check("reused threshold over torch.add", ratio(reused, add).median, 3.0, "lower"),
        Check("torch.topk over reused threshold", ratio(topk, reused).median, 15.0, "higher"),
    ]
    return Result("selection", records, checks)


def measure(_comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds a call by candidate and round, on one thread."""
    config = SelectionBench(**arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        candidates = _candidates(config)
        alternate(candidates, 1)
        return alternate(candidates, config.rounds)
    finally:
        torch.set_num_threads(threads)


def _candidates(config: SelectionBench) -> dict[str, Callable[[], float]]:
    random = np.random.default_rng(0)
    n = config.num_elements
    # Gradients of real layers differ in size, so magnitudes have a heavier tail than one normal
    # distribution.
    scales = np.exp(random.standard_normal(64, dtype=np.float32)).repeat(-(-n // 64))[:n]
    gradient = random.standard_normal(n, dtype=np.float32) * scales
    k = count_of(config.density, n)
    residual = random.standard_normal(n, dtype=np.float32) * scales
    magnitudes = np.abs(gradient + residual)
    threshold = float(np.partition(magnitudes, n - k)[n - k])
    candidates: dict[str, Callable[[], float]] = {
        ADD: _add(gradient, residual),
        TOPK: _topk(magnitudes, k),
        FUSED: _pass(kernels().accumulate, gradient, residual, threshold, k),
        PLAIN: _pass(plain_kernels.accumulate, gradient, residual, threshold, k),
    }
    gradients = [random.standard_normal(n, dtype=np.float32) * scales for _ in range(5)]
    for name, make in SELECTIONS.items():
        candidates[name] = _steps(
            make(config.threshold_steps, 0),
            Residual(np.zeros_like(gradient)),
            gradients,
            k,
            config.steps,
        )
    corrected = MomentumResidual(np.zeros_like(gradient), 0.9, np.zeros_like(gradient))
    reused = SELECTIONS["threshold"](config.threshold_steps, 0)
    candidates["threshold, momentum correction"] = _steps(
        reused, corrected, gradients, k, config.steps
    )
    return candidates


def _add(left: Array, right: Array) -> Callable[[], float]:
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    total = torch.zeros_like(a)
    return lambda: _timed(lambda: torch.add(a, b, out=total))


def _topk(magnitudes: Array, k: int) -> Callable[[], float]:
    vector = torch.from_numpy(magnitudes)
    return lambda: _timed(lambda: torch.topk(vector, k))


def _pass(
    run: Callable[..., Any], gradient: Array, residual: Array, threshold: float, k: int
) -> Callable[[], float]:
    """One pass with a good threshold; gradient and residual are the same in every call."""
    one, limit = np.float32(1), np.float32(threshold)
    working = residual.copy()
    indices, values = np.zeros(2 * k, np.int32), np.zeros(2 * k, np.float32)

    def call() -> float:
        working[...] = residual
        return _timed(lambda: run(gradient, one, working, limit, indices, values, 0))

    return call


def _steps(
    selection: Selection, residual: Residual, gradients: Sequence[Array], k: int, steps: int
) -> Callable[[], float]:
    """Whole steps with error feedback, on gradients that change from step to step and keep their
    scales.
    """
    count = 0

    def call() -> float:
        nonlocal count
        start = time.perf_counter()
        for _ in range(steps):
            selection.select(residual, gradients[count % len(gradients)], k)
            count += 1
        return (time.perf_counter() - start) / steps

    return call


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


BENCH = Bench(
    "finding the largest 1 % of a gradient", SelectionBench, run, {"selection": measure}, ranks=1
)
