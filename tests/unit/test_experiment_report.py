"""From what runs left behind to figures, tables and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dist_ml.experiment import tables
from dist_ml.experiment.folder import ExperimentFolder, Run
from dist_ml.experiment.measurements import Curve, measure
from dist_ml.experiment.points import Point
from dist_ml.experiment.report import Report, report
from tests.experiments import config_of, finish, point_of


def runs_of(path: Path, points: list[Point], repetitions: int = 1) -> list[Run]:
    return ExperimentFolder(config_of(folder=str(path), repetitions=repetitions)).runs(points)


def measured(
    path: Path, rates: Mapping[int, list[float]], settings: Mapping[str, str] | None = None
) -> list[Curve]:
    """The curve of points with so many samples a second in each of their repetitions."""
    points = [point_of(number, ranks) for number, ranks in enumerate(rates, 1)]
    runs = runs_of(path, points, max(map(len, rates.values())))
    for run in runs:
        values = rates[run.point.ranks]
        if run.repetition <= len(values):
            finish(run, samples_per_second=values[run.repetition - 1])
    return measure(points, runs)


def made(curves: list[Curve], **changed: Any) -> Report:
    return report(config_of(**changed), curves)


def test_ratios_are_of_each_repetitions_own_pair(tmp_path: Path) -> None:
    """The machine was half as fast in the second repetition: the ratios don't see it."""
    (curve,) = measured(tmp_path, {1: [100.0, 50.0, 100.0], 2: [160.0, 80.0, 180.0]})
    assert curve.throughputs == {1: 100.0, 2: 160.0}
    speed_up = curve.speed_ups()[2]
    assert (speed_up.median, speed_up.low, speed_up.high) == (1.6, 1.6, 1.8)
    assert curve.efficiencies()[2].median == 0.8
    assert curve.efficiencies()[1].high == 1.0


def test_ratios_are_over_the_fewest_ranks_that_were_measured(tmp_path: Path) -> None:
    (curve,) = measured(tmp_path, {1: [], 2: [200.0], 8: [400.0, 9.0]})
    assert curve.base_ranks == 2
    assert {ranks: each.median for ranks, each in curve.speed_ups().items()} == {2: 1.0, 8: 2.0}
    assert curve.efficiencies()[8].median == 0.5
    (point, *_) = curve.points
    assert point.problems == {1: "it has not run", 2: "it has not run"}


def test_repetitions_without_a_speed_have_no_ratio(tmp_path: Path) -> None:
    (curve,) = measured(tmp_path, {1: [0.0, 0.0], 2: [0.0, 200.0, 200.0], 4: [100.0, 300.0]})
    assert curve.throughputs == {2: 200.0, 4: 200.0}
    assert {ranks: each.median for ranks, each in curve.speed_ups().items()} == {2: 1.0, 4: 1.5}


def test_one_number_of_ranks_has_no_ratios(tmp_path: Path) -> None:
    (curve,) = measured(tmp_path, {2: [200.0]})
    assert (curve.base_ranks, curve.speed_ups(), curve.fits()) == (None, {}, [])
    (point,) = made([curve])["points"]
    assert (point["speed_up"], point["efficiency"], point["relative"]) == (None, None, None)
    assert "speed-up" not in tables.points_table(made([curve])).headers


def test_the_laws_are_fitted_to_the_medians(tmp_path: Path) -> None:
    """Amdahl's law with a tenth that is not shared out, found again through a noisy repetition."""
    rates = {p: [1000 * p / (1 + 0.1 * (p - 1))] * 2 + [1.0] for p in (1, 2, 4, 8)}
    told = made(measured(tmp_path, rates))
    (curve,) = told["curves"]
    fits = {each["law"]: each for each in curve["fits"]}
    assert fits["Amdahl's law"]["sigma"] == pytest.approx(0.1)
    assert fits["Amdahl's law"]["rate"] == pytest.approx(1000.0)
    assert fits["Universal Scalability Law"]["kappa"] == pytest.approx(0.0, abs=1e-9)
    assert curve["fits"][0]["law"] in curve["conclusion"]
    table = tables.fits_table(told)
    assert table.rows[0][:4] == ["all points", "Amdahl's law", "1,000", "0.1000"]


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ((1,), "1 number of ranks can't tell how it scales: Amdahl's law needs 3, Universal"),
        ((1, 2), "2 numbers of ranks can't tell"),
        ((1, 2, 4), "With 3 numbers of ranks there is one law to fit: Universal Scalability Law"),
        ((1, 2, 4, 8), "The better fit is "),
    ],
)
def test_too_few_points_for_a_fit_are_told(
    ranks: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    told = made(measured(tmp_path, {p: [100.0 * p**0.9] for p in ranks}))
    (line,) = tables.conclusions(told)
    assert words in line


def compared(path: Path) -> list[Curve]:
    """Two ways, each on two numbers of ranks; the second one runs a pipeline and counts words by
    axis.
    """
    ways = [("plain", 1), ("plain", 2), ("piped", 1), ("piped", 2)]
    points = [
        point_of(number, ranks, {"ranks": str(ranks), "way": way})
        for number, (way, ranks) in enumerate(ways, 1)
    ]
    runs = runs_of(path, points)
    for run in runs[:3]:
        finish(run)
    pipeline = {"bubble": 0.25, "planned_bubble": 0.125}
    words = {"data": 10, "pipeline": 2_000_000, "odd": "?"}
    finish(runs[3], samples_per_second=100.0, words_by_axis=words, **pipeline)
    return measure(points, runs)


def test_curves_are_compared_with_the_first(tmp_path: Path) -> None:
    told = made(compared(tmp_path), axes={"ranks": [1, 2], "way": ["plain", "piped"]})
    assert [point["relative"] for point in told["points"]] == [1.0, 1.0, 1.0, 0.5]
    assert [curve["title"] for curve in told["curves"]] == ["way=plain", "way=piped"]
    (line,) = tables.conclusions(told)
    assert line.startswith("way=plain, way=piped: 2 numbers of ranks can't tell")


def test_the_table_has_what_runs_measured(tmp_path: Path) -> None:
    table = tables.points_table(made(compared(tmp_path)))
    assert list(table.headers) == [
        "way", "ranks", "seconds", "samples/s", "speed-up", "efficiency", "of the first",
        "communication", "words sent", "bubble", "planned bubble", "words a step along data",
        "words a step along pipeline", "runs",
    ]  # fmt: skip
    assert table.rows[0][:7] == ["plain", "1", "10.00", "100", "1.00", "100%", "1.00"]
    last = dict(zip(table.headers, table.rows[3], strict=True))
    assert (last["bubble"], last["planned bubble"]) == ("25.0%", "12.5%")
    assert (last["words a step along pipeline"], last["words sent"]) == ("2,000,000", "1,000")
    assert table.rows[0][-3:] == ["-", "-", "1"]


def test_spread_and_failures_are_shown(tmp_path: Path) -> None:
    told = made(measured(tmp_path, {1: [100.0, 110.0, 90.0], 2: [150.0]}), repetitions=3)
    one, two = (dict(zip(tables.points_table(told).headers, row, strict=True))
                for row in tables.points_table(told).rows)  # fmt: skip
    assert (one["samples/s"], one["runs"]) == ("100 (90-110)", "3")
    assert (two["samples/s"], two["runs"]) == ("150", "1, 2 failed")
    text = tables.markdown(told, [], "no plots")
    assert "- 2_ranks=2, repetition 3: it has not run" in text
    assert text.endswith("no plots\n")


def test_markdown_is_whole(tmp_path: Path) -> None:
    text = tables.markdown(made(compared(tmp_path)), ["a.png"], "")
    lines = text.splitlines()
    assert lines[0] == "# test: strong scaling"
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert len({len(line) for line in rows}) == 1
    assert "processor a processor, cores 2, commit abc, torch 2" in text
    assert "![a.png](a.png)" in text


def test_what_a_reader_should_know(tmp_path: Path) -> None:
    points = [point_of(1, 1), point_of(2, 4)]
    runs = runs_of(tmp_path, points)
    finish(runs[0], seconds=0.5)
    finish(runs[1], seconds=0.5, environment={"processor": "a processor", "cores": 2})
    notes = made(measure(points, runs))["notes"]
    assert any("commit is None or abc" in note for note in notes)
    assert any("4 ranks of 1 thread share 2 cores" in note for note in notes)
    assert any("Runs took 0.5 s" in note for note in notes)
    (tmp_path / "well").mkdir()
    curves = measured(tmp_path / "well", {1: [1.0], 2: [2.0]})
    assert made(curves)["notes"] == []
    assert any("share 2 cores" in note for note in made(curves, threads=2)["notes"])
    assert made(curves, threads=2, where="slurm")["notes"] == []


def test_broken_summaries_are_left_out(tmp_path: Path) -> None:
    points = [point_of(1, 1), point_of(2, 2)]
    runs = runs_of(tmp_path, points)
    finish(runs[0], samples_per_second=None, seconds="soon", words_by_axis=3, environment=None)
    finish(runs[1])
    (runs[1].folder / "summary.json").write_text("[]")
    told = made(measure(points, runs))
    assert [point["finished"] for point in told["points"]] == [1, 0]
    assert "samples_per_second" not in told["points"][0]["measures"]
    assert tables.points_table(told).headers == ["ranks", "communication", "words sent", "runs"]
    assert tables.points_table(told).rows[1] == ["2", "-", "-", "0, 1 failed"]
    assert tables.markdown(told, [], "")


def test_pictures(tmp_path: Path) -> None:
    plots = pytest.importorskip("dist_ml.experiment.plots", reason="the extra plot is missing")
    told = made(compared(tmp_path), axes={"ranks": [1, 2], "way": ["plain", "piped"]})
    names = [file.name for file in plots.draw(told, tmp_path)]
    assert names == [
        "speed_up.png", "efficiency.png", "samples_per_second.png", "communication.png",
        "bubble.png",
    ]  # fmt: skip
    nothing = made(measure([point_of(1, 1)], runs_of(tmp_path / "none", [point_of(1, 1)])))
    assert plots.draw(nothing, tmp_path) == []


def test_a_fitted_law_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots = pytest.importorskip("dist_ml.experiment.plots", reason="the extra plot is missing")
    told = made(measured(tmp_path, {p: [100 * p / (1 + 0.25 * (p - 1))] for p in (2, 4, 8)}))
    for name, ideal in (("speed_up", 4.0), ("efficiency", 1.0)):
        figure = plots._over_ranks(told, name, name)
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        law = lines["Amdahl's law"]
        points = {point["ranks"]: point[name]["median"] for point in told["points"]}
        assert law.get_xdata()[0] == 2
        assert law.get_ydata()[0] == pytest.approx(1.0)
        assert law.get_ydata()[-1] == pytest.approx(points[8])
        assert lines["ideal"].get_ydata()[-1] == ideal
        plots.plt.close(figure)
