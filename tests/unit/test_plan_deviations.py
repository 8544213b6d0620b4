"""What was predicted of a run beside what was measured: in its summary, on the terminal, and over
several runs.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_world import SHALLOW, on_mesh
from pipeline_world import settings
from plan_world import ideal
from test_report import make_run
from thread_world import run_ranks

from dist_ml.cli.main import main
from dist_ml.comm.communicator import Communicator
from dist_ml.plan import calibrated, deviations
from dist_ml.plan.deviations import beside_measured
from dist_ml.plan.likely_reasons import Run, likely_reason
from dist_ml.train import logs
from dist_ml.train.display.predicted import predicted_lines
from dist_ml.train.run import train_run


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    calibrated.store(dataclasses.replace(ideal(2), base_bytes=10**8, threads=threads))
    yield tmp_path / "run"  # type: ignore[misc]
    logs.stop()


@pytest.mark.parametrize("mesh", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_a_run_holds_both(mesh: tuple[int, int, int], calibration: Path) -> None:
    """Words are equal, phases are the step, and memory is of the size that a process has."""
    choices = {"schedule": "one_f_one_b"} if mesh[1] > 1 else {}
    config = on_mesh(settings(model=SHALLOW), *mesh, **choices)
    config = dataclasses.replace(config, folder=str(calibration), epochs=1)

    def body(world: Communicator) -> dict[str, Any]:
        return train_run(config, world, predict=beside_measured)

    summary, _ = run_ranks(2, body)
    found = {row["name"]: row for row in summary["predicted"]}
    axis = ("data", "pipeline", "operator")[mesh.index(2)]
    words = found.pop(f"{axis} words")
    assert words["measured"] == pytest.approx(words["predicted"], rel=1e-12)
    assert words["why"] == ""
    memory, step = found.pop("memory"), found.pop("step")
    assert memory["measured"] == summary["peak_bytes"]
    assert 1e8 < memory["predicted"] < memory["measured"] < 1e10
    assert {"pipeline" if axis == "pipeline" else "backward", "update", "other"} <= set(found)
    for which in ("predicted", "measured"):
        assert sum(row[which] for row in found.values()) == pytest.approx(step[which])
    assert step["why"]
    assert json.loads((calibration / "summary.json").read_text())["predicted"]


def test_nothing_of_it_fails_a_run(
    calibration: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = dataclasses.replace(settings(model=SHALLOW), folder=str(calibration), epochs=1)

    def body(world: Communicator) -> dict[str, Any]:
        return train_run(config, world, predict=beside_measured)

    monkeypatch.setattr(deviations, "plan_step", lambda *_: 1 / 0)
    (summary,) = run_ranks(1, body)
    assert summary["status"] == "finished"
    assert summary["not_predicted"] == "ZeroDivisionError: division by zero"
    assert predicted_lines(summary) == []
    logs.stop()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    config = dataclasses.replace(config, folder=str(tmp_path / "other"))
    (summary,) = run_ranks(1, body)
    assert "not calibrated" in summary["not_predicted"]
    (hint,) = predicted_lines(summary)
    assert "calibrate" in hint
    assert len(hint) <= 80


def row(name: str, unit: str, predicted: float, measured: float, why: str = "") -> dict[str, Any]:
    return {"name": name, "unit": unit, "predicted": predicted, "measured": measured, "why": why}


ROWS = [
    row("step", "s", 0.0123, 0.0246, "it rained"),
    row("exchange", "s", 0.0, 0.001, "it rained"),
    row("operator words", "words", 1_234_567.0, 1_234_567.0),
    row("memory", "bytes", 312e6, 300e6),
]


def test_the_terminal_shows_a_short_table() -> None:
    lines = predicted_lines({"predicted": ROWS})
    assert lines[1].split() == ["step", "12.3", "ms", "24.6", "ms", "2", "x"]
    assert lines[3].split() == ["operator", "words", "1.23457e+06", "1.23457e+06", "equal"]
    assert lines[4].split() == ["memory", "312", "MB", "300", "MB", "-4%"]
    assert lines[5].strip() == "step, exchange, likely reason: it rained"
    assert max(map(len, lines)) <= 80
    assert predicted_lines({}) == []
    assert predicted_lines({"predicted": [7, {"name": "step"}]}) == []


def test_the_report_shows_it_over_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", 1, 0.1, 100.0, predicted=ROWS)
    make_run(tmp_path / "b", 1, 0.2, 100.0, predicted=ROWS[:1])
    make_run(tmp_path / "c", 1, 0.3, 100.0)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    _, below = shown.split("measured beside predicted:")
    lines = below.strip().splitlines()
    assert lines[1].split() == ["a", "2", "x", "-", "equal", "-4%"]
    assert lines[2].split() == ["b", "2", "x", "-", "-", "-"]
    assert "a: step, exchange, likely reason: it rained" in lines
    assert main(["report", str(tmp_path / "c")]) == 0
    assert "predicted" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": {"load": 9.0, "cores": 2}}, "other programs computed"),
        ({"num_steps": 3}, "few steps"),
        ({"ranks": 4}, "4 threads take turns on 2 cores"),
        ({"environment": {"load": 1.0, "cores": 4}, "ranks": 4}, "launch -n 4 calibrate"),
        ({}, "not known"),
    ],
)
def test_a_reason_is_seen_in_the_run(changes: dict[str, Any], words: str) -> None:
    summary = {"ranks": 2, "num_steps": 900, "environment": {"load": 1.0, "cores": 2}, **changes}
    run = Run(settings(), summary, ideal(2), summary["ranks"])
    assert words in likely_reason(row("update", "s", 1.0, 2.0), run)
    resumed = dataclasses.replace(run, config=dataclasses.replace(settings(), resume="runs/x"))
    assert "resumed" in likely_reason(row("data words", "words", 1.0, 2.0), resumed)
    assert "evaluation" in likely_reason(row("memory", "bytes", 1.0, 2.0), run)
