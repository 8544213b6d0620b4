"""What is shown of a run: on terminals of 40 and 80 columns, in pipes, and by whom."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ml.train import display
from dist_ml.train.display import BarReporter, NullReporter, PlainReporter, make_reporter
from dist_ml.train.display.words import describe, ranks, result_lines, short

VALUES = {
    "loss": 0.51234,
    "test_accuracy": 0.9932,
    "samples_per_second": 123456.0,
    "communication_share": 0.253,
}
SUMMARY = {
    "test_loss": 0.0123456789,
    "samples_per_second": 12345.6,
    "seconds": 3.21,
    "ranks": 1,
    "folder": "runs/[bold]x[/bold]/" + "long" * 30,
}


def bar(width: int) -> tuple[BarReporter, io.StringIO, Console]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, legacy_windows=False)
    return BarReporter(num_steps=200, num_epochs=20, console=console), stream, console


def line(reporter: BarReporter, console: Console) -> str:
    (shown,) = console.render_lines(reporter.renderable(), pad=False)
    return "".join(segment.text for segment in shown)


@pytest.mark.parametrize("width", [40, 80])
def test_one_line_holds_what_matters_from_the_first_step_to_the_last(width: int) -> None:
    """Where there is room for little, the place and the loss are what stays."""
    reporter, _, console = bar(width)
    try:
        text = line(reporter, console)
        assert text.startswith("epoch 0/20")
        assert "-:-- left" in text, "nothing is known of the time yet"
        for step in (1, 100, 200):
            reporter.step(step, VALUES)
            reporter.epoch(step // 10, {})
            text = line(reporter, console)
            assert len(text) <= width
            assert text.startswith(f"epoch {step // 10}/20")
            assert "loss 0.5" in text
            assert "left" in text
        assert text.rstrip().endswith("0:00 left")
        assert ("━" in text) == (width >= 60)
        if width == 80:
            assert "loss 0.5123  acc 99.32%  123k/s  comm 25%" in text
    finally:
        reporter.close()


def test_a_step_without_values_keeps_those_that_were_shown() -> None:
    reporter, _, console = bar(100)
    reporter.step(10, VALUES)
    reporter.step(11, {})
    assert "loss 0.5123" in line(reporter, console)
    reporter.step(12, {"loss": 0.25})
    assert "loss 0.2500  acc 99.32%" in line(reporter, console)
    reporter.close()


def test_results_follow_the_bar_as_they_are_however_narrow_the_terminal() -> None:
    """A path is neither wrapped nor read as markup: it is there to be copied."""
    reporter, stream, _ = bar(40)
    reporter.step(200, VALUES)
    reporter.finish(SUMMARY)
    reporter.close()
    shown = stream.getvalue()
    assert f"run folder      {SUMMARY['folder']}\n" in shown
    assert "test loss       0.0123457\n" in shown
    assert "samples/s       12,346 in 3.2 s on 1 rank\n" in shown
    assert shown.rstrip().endswith(str(SUMMARY["folder"])), "the cursor was shown before"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("dist_ml.train.display.plain.time.monotonic", lambda: self.now)


def test_plain_lines_come_every_five_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    reporter = PlainReporter(num_steps=100, num_epochs=2, stream=stream)
    for step in range(1, 101):
        clock.now += 0.3
        reporter.step(step, {"loss": 1 / step} if step % 10 == 0 else {})
        if step % 50 == 0:
            reporter.epoch(step // 50, {"test_loss": 0.5})
    lines = stream.getvalue().splitlines()
    assert [text.split("  ")[0] for text in lines] == [
        "step 17/100", "step 34/100", "step 51/100", "step 68/100", "step 85/100", "epoch 2/2",
    ]  # fmt: skip
    assert lines[0] == "step 17/100  loss 0.1000  0:25 left"
    assert lines[2] == "step 51/100  loss 0.0200  test 0.5000  0:15 left"
    assert lines[-1].endswith("0:00 left")


@pytest.mark.parametrize(
    ("rank", "environment", "expected"),
    [
        (0, {"TERM": "xterm", "TTY_COMPATIBLE": "1"}, BarReporter),
        (0, {"TERM": "xterm", "TTY_COMPATIBLE": "0"}, PlainReporter),
        (0, {"TERM": "dumb", "TTY_COMPATIBLE": "1"}, PlainReporter),
        (0, {"TTY_COMPATIBLE": "1"}, PlainReporter),
        (3, {"TERM": "xterm", "TTY_COMPATIBLE": "1"}, NullReporter),
    ],
    ids=["terminal", "pipe", "dumb", "no name", "another rank"],
)
def test_who_shows_what_where(
    rank: int, environment: dict[str, str], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    reporter = make_reporter(rank, 10, 1)
    assert type(reporter) is expected
    reporter.step(10, VALUES)
    reporter.epoch(1, {"test_accuracy": 0.5})
    reporter.finish(SUMMARY)
    reporter.close()
    assert bool(stream.getvalue()) == (rank == 0)


def test_a_width_behind_a_pipe_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "47")
    assert display.terminal_console(io.StringIO()).width == 47


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"loss": float("nan")}, ["loss nan"]),
        ({"test_loss": 0.5, "test_accuracy": 1.0}, ["acc 100.00%"]),
        ({"communication_share": 0.004, "samples_per_second": 0.5}, ["0.5/s", "comm 0%"]),
    ],
    ids=str,
)
def test_only_what_is_known_is_said(values: dict[str, float], words: list[str]) -> None:
    assert describe(values) == words


def test_a_failed_runs_summary_says_what_it_has() -> None:
    failed: dict[str, Any] = {"status": "failed", "test_accuracy": None, "folder": Path("runs/x")}
    assert result_lines(failed) == ["run folder      runs/x"]
    assert [ranks({"ranks": count}) for count in (1, 2)] == ["1 rank", "2 ranks"]
    assert [short(x) for x in (9.994e11, 1e15, -1234.0)] == ["999G", "1e+03T", "-1.23k"]


def test_steps_that_were_left_out_are_told() -> None:
    assert result_lines({"num_skipped": 0, "num_steps": 24}) == []
    lines = result_lines({"num_skipped": 16, "num_steps": 1024})
    assert lines == ["steps left out  16 of 1,024: loss or gradient not finite"]
