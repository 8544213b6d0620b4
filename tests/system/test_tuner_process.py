"""The tuner measures in a process of its own."""

import json
from pathlib import Path

import pytest

from dist_ml.kernels import kernels
from dist_ml.kernels.tuner import Shape, Tuner, best
from dist_ml.measure import cache


def test_the_tuner_measures_once_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuner, shape = Tuner(1), Shape(40, 50, 60)
    assert tuner.choose(shape) == "torch"
    tuner.tune([shape])
    rates = tuner.rates(shape)
    assert set(rates) == set(kernels.usable())
    assert min(rates.values()) > 0
    assert Tuner(1).rates(Shape(40, 49, 61)) == rates  # the same class
    assert Tuner(1).choose(shape) == best(rates)
    assert Tuner(2).rates(shape) == {}
    assert json.dumps(cache.load("gemm-kernels"))
