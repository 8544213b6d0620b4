"""What a run leaves behind and shows while it runs."""

import errno
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.train import TrackerConfig
from dist_ml.errors import ConfigError, DataError, MachineError
from dist_ml.train import display, logs, metrics, open_folder, run_folder, trackers
from dist_ml.train.display.words import clock, short

ALONE = Communicator(Loopback())
CONFIG = {"name": "x", "optimizer": {"lr": 1e-8, "betas": [0.9, 0.5]}, "path": None, "text": "1e-4"}
NO_TRACKERS = TrackerConfig(
    tensorboard=False, mlflow=False, mlflow_uri=None, mlflow_experiment="dist_ml"
)
SUMMARY = {
    "test_accuracy": 0.975,
    "samples_per_second": 12345.6,
    "seconds": 3.21,
    "ranks": 2,
    "communication_share": 0.125,
}


@pytest.fixture
def folder(tmp_path: Path) -> run_folder.RunFolder:
    made = open_folder.create(tmp_path / "runs" / "a", CONFIG, ALONE)
    logs.stop()
    return made


def test_a_new_folder(folder: run_folder.RunFolder) -> None:
    assert run_folder.load_config(folder.path) == CONFIG
    assert folder.checkpoints.is_dir()
    assert "rank 0 on" in (folder.log / "rank-0000.log").read_text()


def test_a_run_is_not_overwritten(folder: run_folder.RunFolder) -> None:
    with pytest.raises(ConfigError, match="holds a run already"):
        open_folder.create(folder.path, CONFIG, ALONE)


def test_of_several_runs_that_start_at_once_one_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them sees another's config.yaml when it looks."""
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    with ThreadPoolExecutor(8) as pool:
        runs = [
            pool.submit(open_folder.make, run_folder.RunFolder(tmp_path / "run"), CONFIG)
            for _ in range(8)
        ]
    errors = [run.exception() for run in runs if run.exception() is not None]
    assert len(errors) == 7
    assert all("holds a run already" in str(error) for error in errors)


def on_full_disk(*_arguments: object) -> Any:
    """A file whose every write fails as on a full disk."""
    return Path("/dev/full").open("w")


def test_a_full_disk_hides_no_failure(
    folder: run_folder.RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = logs.start(folder.path, 0)
    handler = logs._file_handlers()[0]
    assert handler.stream is not None
    handler.stream.close()
    handler.stream = on_full_disk()
    monkeypatch.setattr(os, "fdopen", on_full_disk)
    assert logs.record_failure(ValueError("a bug")) is True
    logs.stop()
    assert "Traceback" not in capsys.readouterr().err
    assert logs.first_failure(folder.path) == ""
    assert "a bug" not in file.read_text()


def test_metrics_on_a_full_disk_are_an_error_in_words() -> None:
    lines = metrics.JsonLines(Path("/dev/full"))
    with pytest.raises(DataError, match="/dev/full can't be written: No space left on device"):
        lines.log(0, {"loss": 1.0})
    lines.close()


def test_a_summary_that_cannot_be_written_is_an_error_in_words(
    folder: run_folder.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_whole", full)
    with pytest.raises(DataError, match=r"summary.json can't be written: No space left"):
        folder.write_summary({})


def test_what_a_full_disk_has_no_room_for_leaves_no_file_behind(
    folder: run_folder.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, _text: str) -> None:
        file.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    before = set(folder.path.iterdir())
    with pytest.raises(DataError, match=r"summary.json can't be written: No space left"):
        folder.write_summary({})
    assert set(folder.path.iterdir()) == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"file/run can't be written: Not a directory; choose another folder"
    ):
        open_folder.create(tmp_path / "file" / "run", CONFIG, ALONE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no config.yaml, so it is no run"),
        ("a: [", "can't be read"),
        ("", "must hold a mapping"),
        ("\x00", "can't be read"),
    ],
)
def test_a_broken_config(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=words):
        run_folder.load_config(tmp_path)


def test_a_log_tells_whether_its_run_is_alive(folder: run_folder.RunFolder) -> None:
    assert not logs.is_alive(folder.path)
    logs.start(folder.path, 0)
    assert logs.is_alive(folder.path)
    logs.stop()
    assert not logs.is_alive(folder.path)


def test_lines_are_valid_json_whatever_the_numbers(folder: run_folder.RunFolder) -> None:
    opened = trackers.open_trackers(NO_TRACKERS, folder, ALONE)
    opened.start(CONFIG)
    opened.log(3, {"loss": float("nan"), "peak": float("inf"), "seconds": {"forward": 0.5}})  # type: ignore[dict-item]
    opened.close()
    (line,) = folder.metrics.read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 3, "loss": None, "peak": None, "seconds": {"forward": 0.5}
    }  # fmt: skip
    folder.write_summary({"loss": float("-inf")})
    assert json.loads(folder.summary.read_text()) == {"loss": None}


def test_a_cut_last_line_is_left_out_and_a_broken_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert metrics.read(file) == [{"step": 0}, {"step": 1}]
    file.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl line 2 is no JSON object"):
        metrics.read(file)


@pytest.mark.parametrize("line", ['{"step": "1"}', '{"step": null}', "{}", '{"step": 1.5}', "[1]"])
def test_a_line_without_a_step_is_refused_in_words(line: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    text = f'{{"step": 0}}\n{line}\n'
    file.write_text(text)
    with pytest.raises(DataError, match=r"line 2 .*its step is no whole number"):
        metrics.cut(file, 1)
    assert file.read_text() == text


def test_a_missing_tracker_names_its_extra(
    folder: run_folder.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("no_such_package", "mlflow", trackers.MLflow))
    wanted = TrackerConfig(tensorboard=False, mlflow=True, mlflow_uri=None, mlflow_experiment="x")
    with pytest.raises(MachineError, match="pip install 'mlflow-skinny>="):
        trackers.open_trackers(wanted, folder, ALONE)


class Failing:
    """A tracker whose server is away."""

    def start(self, config: object) -> None:
        pass

    def log(self, step: int, values: object) -> None:
        raise OSError("away")

    def close(self) -> None:
        raise AssertionError("dropped trackers are not called again")


def test_a_failing_tracker_is_dropped_and_the_record_is_not(folder: run_folder.RunFolder) -> None:
    several = trackers.Trackers([metrics.JsonLines(folder.metrics), Failing()])
    several.log(0, {"loss": 1.0})
    several.log(1, {"loss": 0.5})
    several.close()
    assert [line["step"] for line in metrics.read(folder.metrics)] == [0, 1]
    with pytest.raises(OSError, match="away"):
        trackers.Trackers([Failing()]).log(0, {})


def test_tensorboard(folder: run_folder.RunFolder) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    tracker = trackers.TensorBoard(folder, NO_TRACKERS, 0)
    tracker.start(CONFIG)
    tracker.log(1, {"loss": 0.5})
    tracker.log(2, {"loss": float("nan"), "traffic": {"words": 3}})  # type: ignore[dict-item]
    tracker.close()
    trackers.TensorBoard(folder, NO_TRACKERS, 2).close()  # makes step 2 again
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]
    assert events.Scalars("traffic.words") == []


def test_mlflow(folder: run_folder.RunFolder) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    config = TrackerConfig(
        tensorboard=False, mlflow=True, mlflow_uri=None, mlflow_experiment="mine"
    )
    for first_step in (0, 1):
        tracker = trackers.MLflow(folder, config, first_step)
        tracker.start({**CONFIG, "resume": first_step})
        tracker.log(1, {"loss": 0.5})
        tracker.close()
    client = mlflow.MlflowClient(trackers.mlflow_uri(folder, config))
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.data.metrics == {"loss": 0.5}
    assert run.data.params["optimizer.lr"] == "1e-08"
    assert run.info.status == "FINISHED"


def test_plain_lines() -> None:
    stream = io.StringIO()
    reporter = display.PlainReporter(num_steps=20, num_epochs=2, stream=stream)
    for step in range(20):
        reporter.step(
            step + 1, {"loss": 0.5, "samples_per_second": 1234.0, "communication_share": 0.25}
        )
    reporter.epoch(1, {"test_accuracy": 0.9})
    reporter.epoch(2, {"test_accuracy": 0.975})
    reporter.finish({**SUMMARY, "folder": "runs/x"})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch 2/2  loss 0.5000  acc 97.50%  1.23k/s  comm 25%  0:00 left"
    assert lines[1:] == [
        "test accuracy   97.50%",
        "samples/s       12,346 in 3.2 s on 2 ranks",
        "communication   12.5% of the time",
        "run folder      runs/x",
    ]


@pytest.mark.parametrize("kind", ["full", "no reader"])
def test_plain_lines_that_nobody_can_take_end_without_ending_the_run(kind: str) -> None:
    if kind == "full":
        stream = on_full_disk()
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    reporter = display.PlainReporter(num_steps=1, num_epochs=1, stream=stream)
    reporter.epoch(1, {"loss": 0.5})
    reporter.finish(SUMMARY)
    stream.close()  # what is left in its buffer goes nowhere, and fails no more


def test_a_closed_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert isinstance(display.make_reporter(0, 10, 1), display.NullReporter)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_bar_fits_on_a_line(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, legacy_windows=False)
    reporter = display.BarReporter(num_steps=123456, num_epochs=1000, console=console)
    values = {
        "loss": 0.51234,
        "test_accuracy": 0.99,
        "samples_per_second": 123456.0,
        "communication_share": 0.253,
    }
    reporter.epoch(999, values)
    reporter.step(100000, values)
    shown = console.render_lines(reporter.renderable(), pad=False)
    assert len(shown) == 1
    text = "".join(segment.text for segment in shown[0])
    assert len(text) <= width
    if width >= 80:
        assert "epoch 999/1000" in text
        assert "loss 0.5123  acc 99.00%  123k/s  comm 25%" in text
        assert text.rstrip().endswith("left")
    reporter.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm", "TTY_COMPATIBLE": "1"}, True),
        ({"TERM": "xterm"}, False),
        ({"TERM": "dumb", "TTY_COMPATIBLE": "1"}, False),
    ],
)
def test_where_a_bar_can_move(environment: dict[str, str], expected: bool) -> None:
    assert display.on_terminal(environment, io.StringIO()) is expected


def test_only_rank_0_reports() -> None:
    assert isinstance(display.make_reporter(1, 10, 1), display.NullReporter)
    assert sys.stdout.isatty() or not isinstance(
        display.make_reporter(0, 10, 1), display.NullReporter
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (950.0, "950"), (1234.0, "1.23k"), (999600.0, "1M"), (4.56e7, "45.6M")],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (754, "12:34"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
