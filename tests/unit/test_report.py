"""Runs found on disk, side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.text import Text

from dist_ml.cli import comparison, main, report
from dist_ml.cli.step_phases import step_phases
from dist_ml.errors import DataError
from dist_ml.train import logs, stored_run


def make_run(
    folder: Path, ranks: int, lr: float, speed: float | None = None, **summary: Any
) -> Path:
    """A run folder as training leaves it; without a speed, one that has no summary."""
    (folder / "log").mkdir(parents=True)
    config = {
        "name": "x",
        "folder": str(folder),
        "ranks": ranks,
        "optimizer": {"name": "sgd", "lr": lr},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": step, "loss": 1.0 / (1 + step), "seconds": {"forward": 0.25, "exchange": 0.75}}
        for step in range(4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if speed is not None:
        values = {
            "status": "finished",
            "ranks": ranks,
            "samples_per_second": speed,
            "test_accuracy": 0.5,
            **summary,
        }
        (folder / "summary.json").write_text(json.dumps(values))
    return folder


def rows_of(root: Path) -> dict[str, comparison.Row]:
    return {
        row.name: row
        for row in comparison.compare([stored_run.read(folder) for folder in stored_run.find(root)])
    }


def test_runs_are_found_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        make_run(tmp_path / f"{number}_seed={number}", 1, 0.1)
    assert [folder.name for folder in stored_run.find(tmp_path)] == [
        "1_seed=1",
        "2_seed=2",
        "10_seed=10",
    ]


@pytest.mark.parametrize(("name", "words"), [("nowhere", "is no folder"), ("", "holds no run")])
def test_nothing_to_report(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(tmp_path / name)]) == DataError.exit_status
    assert words in capsys.readouterr().err


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 1, 0.1, 100.0)
    make_run(tmp_path / "b", 1, 0.2, 100.0)
    rows = rows_of(tmp_path)
    assert rows["a"].differing == {"optimizer.lr": 0.1}
    assert rows["b"].cell("optimizer.lr") == "0.2"
    assert [name for name, _ in comparison.columns(list(rows.values()))] == [
        "run", "ranks", "optimizer.lr", "accuracy", "loss", "samples/s", "status"
    ]  # fmt: skip


def test_speed_up_is_over_the_fewest_ranks_of_the_same_configuration(tmp_path: Path) -> None:
    make_run(tmp_path / "a1", 1, 0.1, 100.0)
    make_run(tmp_path / "a4", 4, 0.1, 250.0)
    make_run(tmp_path / "b2", 2, 0.2, 100.0)
    make_run(tmp_path / "b4", 4, 0.2, 150.0)
    make_run(tmp_path / "c", 4, 0.3, 150.0)
    make_run(tmp_path / "failed", 8, 0.1, 900.0, status="failed", error="loss is nan")
    speed_ups = {name: row.speed_up for name, row in rows_of(tmp_path).items()}
    assert speed_ups == {"a1": 1.0, "a4": 2.5, "b2": 1.0, "b4": 1.5, "c": None, "failed": None}


def test_status_of_runs_without_a_summary(tmp_path: Path) -> None:
    running, failed, killed = (
        make_run(tmp_path / name, 1, 0.1) for name in ("running", "failed", "killed")
    )
    logs.start(failed, 0)
    logs.record_failure(ValueError("a bug"))
    logs.start(running, 0)
    try:
        assert stored_run.read(running).status == "running"
    finally:
        logs.stop()
    assert stored_run.read(killed).status == "broken off"
    assert (stored_run.read(failed).status, stored_run.read(failed).problem[-17:]) == (
        "failed",
        "ValueError: a bug",
    )


@pytest.mark.parametrize(
    ("file", "text", "status"),
    [
        ("config.yaml", "a: [", "unreadable"),
        ("summary.json", "{", "unreadable"),
        ("metrics.jsonl", "{\n{}\n", "finished"),
    ],
)
def test_a_broken_file_is_named_and_the_others_still_shown(
    file: str, text: str, status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "good", 1, 0.1, 100.0)
    broken = make_run(tmp_path / "broken", 1, 0.2, 100.0)
    (broken / file).write_text(text)
    assert main.main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"broken: {status}: {broken / file}" in shown
    assert "good" in shown
    assert "Traceback" not in shown


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", 2, 0.1, 100.0)
    assert main.main(["report", "--json", str(tmp_path)]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["ranks"], run["status"], run["accuracy"], run["loss"]) == (2, "finished", 0.5, 0.25)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    for ranks in (1, 2):
        for lr in (0.1, 0.2):
            make_run(
                tmp_path / f"{ranks}_ranks={ranks},optimizer.lr={lr}",
                ranks,
                lr,
                1e5,
                seconds=12.5,
                communication_share=0.5,
            )
    lines = report.table(list(rows_of(tmp_path).values())).splitlines()
    assert len(lines) == 5
    assert max(len(Text.from_ansi(line).plain) for line in lines) <= width
    assert all(line.endswith("finished") for line in lines[1:])


def test_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dist_ml.cli.plots", reason="the extra plot is not installed")
    make_run(tmp_path / "a", 1, 0.1, 100.0)
    make_run(
        tmp_path / "b",
        2,
        0.1,
        100.0,
        seconds_by_phase={"forward": 2.0, "exchange": 4.0},
        num_steps=8,
    )
    rows = rows_of(tmp_path)
    assert step_phases(rows["a"].run) == {"forward": 0.25, "exchange": 0.75}
    assert step_phases(rows["b"].run) == {"forward": 0.25, "exchange": 0.5}
    assert main.main(["report", str(tmp_path), "--plot", str(tmp_path / "plots")]) == 0
    assert all(
        (tmp_path / "plots" / name).read_bytes()[:4] == b"\x89PNG"
        for name in ("loss.png", "step_time.png")
    )
    assert "drawn: " in capsys.readouterr().out


def test_nothing_to_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(tmp_path / "a", 1, 0.1) / "metrics.jsonl").write_text("")
    assert main.main(["report", str(tmp_path), "--plot", str(tmp_path / "plots")]) == 2
    assert "nothing to plot" in capsys.readouterr().err


def test_a_full_disk_under_standard_output_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", 1, 0.1, 100.0)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main.main(["report", str(tmp_path)]) == 2
    assert "standard output can't be written: No space left" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdout", None)  # `>&-`
    monkeypatch.setenv("TERM", "xterm")
    assert main.main(["report", str(tmp_path)]) == 0
