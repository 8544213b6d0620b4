"""Laws of scaling: fitted exactly, against a brute-force search in fp64."""

import math
import random
from collections.abc import Mapping

import numpy as np
import pytest

from dist_ml.measure import scaling
from dist_ml.measure.scaling import AMDAHL, USL, ScalingFit

RANKS = (1, 2, 4, 8, 16, 32)


def usl(rate: float, sigma: float, kappa: float, ranks: float) -> float:
    """Samples a second, as Gunther writes it."""
    return rate * ranks / (1 + sigma * (ranks - 1) + kappa * ranks * (ranks - 1))


def residual(law: Mapping[str, float], throughputs: Mapping[int, float]) -> float:
    errors = [
        x / usl(law["rate"], law["sigma"], law["kappa"], p) - 1 for p, x in throughputs.items()
    ]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def search(throughputs: Mapping[int, float], with_kappa: bool) -> tuple[float, float, float]:
    """(least residual, sigma, kappa) on a grid over all of both, then on finer ones around the best
    of the last; the rate that fits best follows from them.
    """
    ranks = np.array(sorted(throughputs), float)[:, None, None]
    measured = np.array([[[throughputs[int(p)]]] for p in ranks.ravel()])
    sigmas = np.linspace(0.0, 1.0, 201)
    kappas = np.concatenate([[0.0], np.logspace(-6, 4, 400)]) if with_kappa else np.zeros(1)
    best, span = (math.inf, 0.0, 0.0), 0.1
    for _ in range(60):
        growth = 1 + sigmas[:, None] * (ranks - 1) + kappas[None, :] * ranks * (ranks - 1)
        shape = measured * growth / ranks
        scale = shape.sum(0) / (shape**2).sum(0)
        found = np.sqrt(((scale * shape - 1) ** 2).mean(0))
        i, j = np.unravel_index(found.argmin(), found.shape)
        best = min(best, (float(found[i, j]), float(sigmas[i]), float(kappas[j])))
        sigmas = np.clip(best[1] + np.linspace(-span, span, 21), 0.0, 1.0)
        if with_kappa:
            kappas = np.append(best[2] * np.exp(np.linspace(-span, span, 21)), 0.0)
        span *= 0.75
    return best


@pytest.mark.parametrize(
    ("sigma", "kappa"), [(0.0, 0.0), (0.05, 0.0), (0.1, 0.002), (0.0, 0.01), (1.0, 0.0), (0.9, 0.5)]
)
def test_a_law_without_noise_is_found_again(sigma: float, kappa: float) -> None:
    throughputs = {ranks: usl(1234.5, sigma, kappa, ranks) for ranks in RANKS}
    found = scaling.fit(USL, throughputs)
    assert found.rate == pytest.approx(1234.5, rel=1e-9)
    assert found.sigma == pytest.approx(sigma, abs=1e-9)
    assert found.kappa == pytest.approx(kappa, abs=1e-9)
    assert found.residual < 1e-9
    assert [found.throughput(p) for p in RANKS] == pytest.approx(list(throughputs.values()))
    if kappa == 0:
        assert scaling.fit(AMDAHL, throughputs).sigma == pytest.approx(sigma, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("law", [AMDAHL, USL])
def test_noisy_points_are_fitted_as_well_as_a_search_fits_them(law: str, seed: int) -> None:
    """Also where the best parameters lie at their limits: superlinear, flat and falling points."""
    chance = random.Random(seed)
    ranks = sorted(chance.sample(range(1, 40), 5))
    shape = (chance.choice([0.0, 0.1, 1.0]), chance.choice([0.0, 0.001, 0.1]))
    throughputs = {
        p: usl(50.0, *shape, p) * chance.uniform(0.7, 1.3) * p ** chance.choice([0, 0.2])
        for p in ranks
    }
    found = scaling.fit(law, throughputs)
    least, sigma, kappa = search(throughputs, with_kappa=law == USL)
    assert found.residual <= least + 1e-7
    assert found.residual == pytest.approx(least, abs=1e-4)
    assert found.sigma == pytest.approx(sigma, abs=2e-3)
    assert found.kappa == pytest.approx(kappa, abs=2e-3)
    assert 0 <= found.sigma <= 1
    assert found.kappa >= 0
    law_found = {"rate": found.rate, "sigma": found.sigma, "kappa": found.kappa}
    assert residual(law_found, throughputs) == pytest.approx(found.residual, rel=1e-6, abs=1e-12)


def test_residuals_are_relative_and_corrected_for_parameters() -> None:
    """Twice the speed changes nothing but the rate."""
    throughputs = {1: 100.0, 2: 190.0, 4: 300.0, 8: 420.0, 16: 380.0}
    found = scaling.fit(USL, throughputs)
    twice = scaling.fit(USL, {p: 2 * x for p, x in throughputs.items()})
    assert (twice.sigma, twice.residual) == pytest.approx((found.sigma, found.residual))
    assert twice.rate == pytest.approx(2 * found.rate)
    assert found.corrected_residual == pytest.approx(found.residual * math.sqrt(5 / (5 - 3)))
    amdahl = scaling.fit(AMDAHL, throughputs)
    assert amdahl.corrected_residual == pytest.approx(amdahl.residual * math.sqrt(5 / (5 - 2)))


def test_the_law_with_the_less_corrected_residual_is_first() -> None:
    falling = {1: 100.0, 2: 180.0, 4: 260.0, 8: 250.0, 16: 160.0}
    assert [each.law for each in scaling.fit_all(falling)] == [USL, AMDAHL]
    # Alternating errors: a third parameter gains less than it costs.
    noisy = {p: usl(100.0, 0.1, 0.0, p) * (1.02 if i % 2 else 0.98) for i, p in enumerate(RANKS)}
    assert [each.law for each in scaling.fit_all(noisy)] == [AMDAHL, USL]


@pytest.mark.parametrize(("count", "laws"), [(1, []), (2, []), (3, [AMDAHL]), (4, [AMDAHL, USL])])
def test_laws_with_as_many_parameters_as_points_are_left_out(count: int, laws: list[str]) -> None:
    throughputs = {p: usl(100.0, 0.1, 0.0, p) * (1 + 0.01 * (p % 3)) for p in RANKS[:count]}
    assert sorted(each.law for each in scaling.fit_all(throughputs)) == laws


def test_most_ranks_is_where_the_law_turns() -> None:
    law = ScalingFit(USL, 100.0, 0.1, 0.001, 0.0, None)
    assert law.most_ranks == pytest.approx(30.0)
    peak = law.throughput(30.0)
    assert peak > law.throughput(29.0)
    assert peak > law.throughput(31.0)
    assert ScalingFit(AMDAHL, 100.0, 0.1, 0.0, 0.0, None).most_ranks is None


def test_points_that_do_not_begin_with_one_rank() -> None:
    throughputs = {p: usl(10.0, 0.2, 0.01, p) for p in (2, 4, 6, 12)}
    found = scaling.fit(USL, throughputs)
    assert (found.rate, found.sigma, found.kappa) == pytest.approx((10.0, 0.2, 0.01))
    assert scaling.fit(AMDAHL, {2: 8.0, 64: 1.0}).sigma == 1.0  # slower than with one rank's rate


def test_speed_ups_and_efficiencies_are_over_the_fewest_ranks() -> None:
    throughputs = {4: 300.0, 2: 200.0}
    assert scaling.speed_ups(throughputs) == {4: 1.5, 2: 1.0}
    assert scaling.efficiencies(throughputs) == {4: 0.75, 2: 1.0}
