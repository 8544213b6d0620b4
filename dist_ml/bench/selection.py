"""`dist-ml bench selection`: what finding 1 % of a gradient costs, against what PyTorch and NumPy
offer.

Every candidate is a whole selection with error feedback: the gradient is added to the residual, the
threshold found, entries taken out. Ours reuse a threshold for some steps; beside that amortised
figure stands the one with a new exact threshold in every step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.selection_baselines import BASELINES, EXACT
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.residual import MomentumResidual, Residual
from dist_ml.data_parallel.selection import SELECTIONS, count_of
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import alternate, fastest, own_seconds, ratio, spread

ADD = "torch.add"
REUSED, ANEW = "threshold, reused", "threshold, anew each step"


@dataclass(frozen=True)
class SelectionBench:
    """What to select from."""

    num_elements: int  # float32
    density: float  # share of them to select
    threshold_steps: int  # between exact thresholds, where they are reused
    rounds: int  # of alternation
    # ours run so often in a row, each round: their mean holds the upkeep of the threshold
    steps: int

    def __post_init__(self) -> None:
        if self.steps % self.threshold_steps:
            raise ConfigError(
                f"steps={self.steps} must be a multiple of threshold_steps={self.threshold_steps}"
            )


def run(config: SelectionBench, worlds: Worlds) -> Result:
    seconds = worlds.measure("selection", vars(config), ranks=1)
    best = fastest(seconds, list(EXACT))
    records: list[Record] = []
    for name, times in seconds.items():
        each = spread(times)
        records.append(
            {
                "candidate": name,
                "ms": 1e3 * each.median,
                "low": 1e3 * each.low,
                "high": 1e3 * each.high,
                "over_add": ratio(times, seconds[ADD]).median,
                "best_exact_over": ratio(seconds[best], times).median,
            }
        )
    return Result("selection", records, selection_checks(seconds))


def selection_checks(seconds: Mapping[str, Sequence[float]]) -> list[Check]:
    """Amortised over the period of a threshold, and with a new one in every step, each against the
    fastest that PyTorch and NumPy offer for the same work.
    """
    add, exact = seconds[ADD], seconds[fastest(seconds, list(EXACT))]
    sampled = seconds["sampled torch.topk"]
    return [
        Check("reused threshold over torch.add", ratio(seconds[REUSED], add).median, 3.0, "lower"),
        Check(
            "best exact baseline over reused threshold",
            ratio(exact, seconds[REUSED]).median,
            3.0,
            "higher",
        ),
        Check(
            "sampled torch.topk over reused threshold",
            ratio(sampled, seconds[REUSED]).median,
            1.0,
            "higher",
        ),
        Check(
            "best exact baseline over a new threshold each step",
            ratio(exact, seconds[ANEW]).median,
            1.0,
            "higher",
        ),
    ]


def measure(_comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds a step by candidate and round, on one thread."""
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
    """Steps on gradients that change from step to step and keep their scales."""
    random = np.random.default_rng(0)
    n, k = config.num_elements, count_of(config.density, config.num_elements)
    # Gradients of real layers differ in size, so magnitudes have a heavier tail than one normal
    # distribution.
    scales = np.exp(random.standard_normal(64, dtype=np.float32)).repeat(-(-n // 64))[:n]
    gradients = [random.standard_normal(n, dtype=np.float32) * scales for _ in range(5)]
    candidates = {ADD: _add(gradients)}
    for name, select in BASELINES.items():
        residual = np.zeros(n, np.float32)
        candidates[name] = _steps(partial(_select, select, residual, k=k), gradients, 1)
    for name, make in SELECTIONS.items():
        label = REUSED if name == "threshold" else name
        selection = make(config.threshold_steps, 0)
        own = Residual(np.zeros(n, np.float32))
        candidates[label] = _steps(partial(selection.select, own, k=k), gradients, config.steps)
    anew, own = SELECTIONS["threshold"](1, 0), Residual(np.zeros(n, np.float32))
    candidates[ANEW] = _steps(partial(anew.select, own, k=k), gradients, 1)
    corrected = MomentumResidual(np.zeros(n, np.float32), 0.9, np.zeros(n, np.float32))
    reused = SELECTIONS["threshold"](config.threshold_steps, 0)
    candidates[f"{REUSED}, momentum"] = _steps(
        partial(reused.select, corrected, k=k), gradients, config.steps
    )
    return candidates


def _add(gradients: Sequence[Array]) -> Callable[[], float]:
    a, b = (torch.from_numpy(gradient) for gradient in gradients[:2])
    total = torch.zeros_like(a)
    return lambda: own_seconds(lambda: torch.add(a, b, out=total))


def _select(select: Callable[..., Any], residual: Array, gradient: Array, k: int) -> None:
    select(residual, gradient, k)


def _steps(
    step: Callable[[Array], object], gradients: Sequence[Array], steps: int
) -> Callable[[], float]:
    """Seconds a step, of `steps` in a row."""
    count = 0

    def one() -> None:
        nonlocal count
        step(gradients[count % len(gradients)])
        count += 1

    return lambda: own_seconds(one, steps)


BENCH = Bench(
    "finding the largest 1 % of a gradient", SelectionBench, run, {"selection": measure}, ranks=1
)
