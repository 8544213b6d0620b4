"""The cost model and what is kept of measurements."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest

from dist_ml.measure import cache
from dist_ml.measure.cost_model import CostModel, Link, fit, interpolate
from dist_ml.measure.timer import Phases


@pytest.mark.parametrize(("latency", "rate"), [(1e-6, 1e9), (2e-4, 1.2e7), (5e-5, 1e10)])
def test_a_fit_finds_the_link_that_made_its_samples(latency: float, rate: float) -> None:
    link = Link(latency, rate)
    found = fit([(size, link.seconds(1, size)) for size in (4.0, 1e5, 1e6, 1e7)])
    assert found.latency_seconds == pytest.approx(latency, rel=1e-6)
    assert found.bytes_per_second == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([(4.0, 1e-3), (1e6, 1e-3)], id="time does not grow"),
        pytest.param([(4.0, 2e-3), (1e6, 1e-3)], id="time falls"),
        pytest.param([(1e6, 1e-3), (1e6, 1e-3)], id="one size"),
    ],
)
def test_a_fit_of_odd_samples_stays_positive_and_finite(
    samples: list[tuple[float, float]],
) -> None:
    found = fit(samples)
    assert 0 < found.latency_seconds < 1
    assert 0 < found.bytes_per_second < math.inf


def test_seconds_are_messages_words_copies_and_operations() -> None:
    model = CostModel(Link(1e-3, 1e6), Link(1e-5, 1e8), 1e9, 1e-8, 2e9)
    assert model.seconds(3, 1000) == pytest.approx(3e-3 + 4e-3)
    assert model.seconds(3, 1000, word_bytes=8) == pytest.approx(3e-3 + 8e-3)
    assert model.seconds(2, 1000, between_nodes=False) == pytest.approx(2e-5 + 4e-5)
    assert model.copy_seconds(1e6) == pytest.approx(4e-3)
    assert model.compute_seconds(1e9) == pytest.approx(0.5)
    assert CostModel.from_mapping(json.loads(json.dumps(model.to_mapping()))) == model
    assert CostModel.one_link(Link(1e-6, 1e9), 5.0).node == Link(1e-6, 1e9)


def test_interpolation_runs_along_the_logarithms() -> None:
    table = {100: 1e-6, 10_000: 1e-4}
    assert interpolate(table, 1000) == pytest.approx(1e-5)
    assert interpolate(table, 100) == pytest.approx(1e-6)
    assert interpolate(table, 1) == pytest.approx(1e-6)
    assert interpolate(table, 1e9) == pytest.approx(1e-4)
    assert interpolate({8: 3.0}, 100) == pytest.approx(3.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dist_ml"


def test_what_is_kept_comes_back_and_rubbish_does_not(home: Path) -> None:
    assert cache.load("kernels") is None
    cache.store("kernels", {"a": 1})
    assert cache.load("kernels") == {"a": 1}
    cache.merge("kernels", "this machine", {"x": 2.0})
    cache.merge("kernels", "this machine", {"y": 3.0})
    assert cache.load("kernels") == {"a": 1, "this machine": {"x": 2.0, "y": 3.0}}
    assert [file.name for file in home.iterdir()] == ["kernels.json"]  # no partial file is left
    for rubbish in ("", "{", "[1, 2]", '"text"'):
        (home / "kernels.json").write_text(rubbish)
        assert cache.load("kernels") is None
    cache.merge("kernels", "m", {"x": 1.0})
    assert cache.load("kernels") == {"m": {"x": 1.0}}


def test_a_folder_that_cannot_be_made_is_no_error(home: Path) -> None:
    home.write_text("a file where the folder should be")
    cache.store("kernels", {"a": 1})
    cache.merge("kernels", "m", {"a": 1})
    assert cache.load("kernels") is None


def test_a_write_that_fails_leaves_what_was_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store("kernels", {"a": 1})
    monkeypatch.setattr(Path, "replace", _no_room)
    cache.store("kernels", {"a": 2})
    assert cache.load("kernels") == {"a": 1}
    assert [file.name for file in home.iterdir()] == ["kernels.json"]


def _no_room(*_: object) -> None:
    raise OSError("no space left on device")


def _write_many(number: int) -> None:
    for step in range(40):
        cache.merge("shared", str(number), {str(step): "x" * 2000})


def test_a_file_that_many_processes_write_is_always_whole(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        file = home / "shared.json"
        if file.exists():
            json.loads(file.read_text())
    for writer in writers:
        writer.join(20)
        assert writer.exitcode == 0
    assert cache.load("shared") is not None


def test_phases_sum_their_seconds_and_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 7.0, 10.0, 10.5, 20.0, 20.25])
    monkeypatch.setattr("dist_ml.measure.timer.time.perf_counter", lambda: next(clock))
    phases = Phases()
    for name in ("forward", "backward", "forward"):
        with phases(name):
            pass
    with pytest.raises(ZeroDivisionError), phases("backward"):
        _ = 1 / 0  # a phase that fails has taken its time all the same
    assert phases.take() == {"forward": 1.5, "backward": 2.25}
    assert phases.take() == {}
