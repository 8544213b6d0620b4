"""How throughput grows with ranks: speed-up, efficiency, and two laws fitted to measurements.

With X(P) samples a second on P ranks, both laws say P / X(P), the rank-seconds of a sample, as
1 + sigma (P - 1) + kappa P (P - 1) times that of one rank:

- Amdahl's law (G. Amdahl, AFIPS 1967): kappa = 0; the share sigma of the work is not shared out.
- the Universal Scalability Law (N. Gunther, "Guerrilla Capacity Planning", Springer 2007, chapter
  4): kappa > 0 is what ranks spend on agreeing with each other pairwise, so that beyond a number of
  ranks more of them make it slower.

The seconds of a sample, 1 / X(P), are then u + v / P + w (P - 1) with u, v, w >= 0: linear, so that
the best fit is found exactly and not by descent. sigma = u / (u + v), kappa = w / (u + v).
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AMDAHL, USL = "Amdahl's law", "Universal Scalability Law"
PARAMETERS = {AMDAHL: 2, USL: 3}  # that a law has, of u, v, w


@dataclass(frozen=True)
class ScalingFit:
    """A law with the parameters that fit best, by the relative errors of the seconds a sample."""

    law: str
    rate: float  # samples a second of one rank
    sigma: float  # share of the work that is not shared out, 0 to 1
    kappa: float  # cost of agreement between pairs of ranks; 0 in Amdahl's law
    residual: float  # relative errors, root of their mean square
    # the same with the square root of (points - parameters) in place of points; None where there
    # are no more points than parameters, and any law with as many fits
    corrected_residual: float | None

    def throughput(self, ranks: float) -> float:
        """Samples a second on so many ranks."""
        return self.rate * self.speed_up(ranks)

    def speed_up(self, ranks: float) -> float:
        """Over one rank."""
        others = ranks - 1
        return ranks / (1 + self.sigma * others + self.kappa * ranks * others)

    @property
    def most_ranks(self) -> float | None:
        """Ranks beyond which more of them make it slower; None where there is no such number."""
        return math.sqrt((1 - self.sigma) / self.kappa) if self.kappa > 0 else None


def fit(law: str, throughputs: Mapping[int, float]) -> ScalingFit:
    """The parameters of `law` (AMDAHL, USL) with the least sum of squared relative errors of the
    seconds a sample, sigma in [0, 1] and kappa >= 0. `throughputs`: samples a second by ranks, of
    two numbers of ranks at least, all above zero.
    """
    assert len(throughputs) >= 2, "one number of ranks says nothing about growth"
    ranks = np.array(sorted(throughputs), np.float64)
    measured = np.array([throughputs[int(each)] for each in ranks], np.float64)
    terms = np.stack([np.ones_like(ranks), 1 / ranks, ranks - 1], axis=1)
    # Scaled so that its product with (u, v, w) is the predicted over the measured seconds.
    columns = (terms * measured[:, None])[:, : PARAMETERS[law]]
    solution = _nonnegative_least_squares(columns, np.ones_like(ranks))
    u, v, w = (*solution, 0.0)[:3]
    errors = columns @ solution - 1
    squares, surplus = float(errors @ errors), len(ranks) - len(solution)
    return ScalingFit(
        law=law,
        rate=1 / (u + v),
        sigma=u / (u + v),
        kappa=w / (u + v),
        residual=math.sqrt(squares / len(ranks)),
        corrected_residual=math.sqrt(squares / surplus) if surplus > 0 else None,
    )


def fit_all(throughputs: Mapping[int, float]) -> list[ScalingFit]:
    """Each law that has fewer parameters than there are numbers of ranks, the one with the least
    corrected residual first; empty where there are too few for any.
    """
    fits = [fit(law, throughputs) for law, count in PARAMETERS.items() if len(throughputs) > count]
    return sorted(fits, key=lambda each: each.corrected_residual or 0.0)


def speed_ups(throughputs: Mapping[int, float]) -> dict[int, float]:
    """Over the fewest ranks, by ranks."""
    base = throughputs[min(throughputs)]
    return {ranks: each / base for ranks, each in throughputs.items()}


def efficiencies(throughputs: Mapping[int, float]) -> dict[int, float]:
    """Throughput a rank over that of the fewest ranks, by ranks: for strong scaling the speed-up
    over the ratio of ranks, for weak scaling how well a rank keeps its rate.
    """
    fewest = min(throughputs)
    return {ranks: up * fewest / ranks for ranks, up in speed_ups(throughputs).items()}


def _nonnegative_least_squares(columns: Array, target: Array) -> Array:
    """The non-negative x with the least |columns x - target|, of a few columns: the best of the
    unconstrained ones on each set of columns that turn out non-negative. The problem is convex, so
    the optimum is one of them. The first two columns are not both left out: they make one rank's
    seconds.
    """
    count = columns.shape[1]
    best, least = np.zeros(count), math.inf
    for chosen in itertools.product((True, False), repeat=count):
        if not any(chosen[:2]):
            continue
        own = np.flatnonzero(chosen)
        found = np.linalg.lstsq(columns[:, own], target, rcond=None)[0]
        if (found < 0).any():
            continue
        solution = np.zeros(count)
        solution[own] = found
        errors = columns @ solution - target
        if not (solution[:2] > 0).any() or float(errors @ errors) >= least:
            continue
        best, least = solution, float(errors @ errors)
    return best
