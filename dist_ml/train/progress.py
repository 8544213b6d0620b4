"""What the user sees of a run: on a terminal one line that moves, elsewhere plain lines; on rank 0
only.

mpiexec shows ranks a pipe, so `dist-ml launch` passes on what it sees itself: TTY_COMPATIBLE and
COLUMNS.
"""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

_PLAIN_SECONDS = (
    5.0  # plain lines come at most this often, and at the ends of epochs that are evaluated
)
_WIDEST_BAR = 20
_NARROW = 60


class Reporter(Protocol):
    """What the trainer tells while it trains. Values: epoch, loss, accuracy, samples_per_second,
    communication_share (0 … 1).
    """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """So many optimizer steps are done; `values` are the newest known and may be empty."""

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """So many epochs are done; `values` hold the evaluation's test_accuracy and test_loss if
        there was one.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over; says what the summary holds of the result."""

    def close(self) -> None:
        """Leave the terminal as it was found, whatever happened."""


class NullReporter:
    """For ranks other than 0."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class PlainReporter:
    """Whole lines, for pipes, files and dumb terminals."""

    def __init__(self, num_steps: int, num_epochs: int, stream: TextIO | None = None) -> None:
        self._num_steps, self._num_epochs = num_steps, num_epochs
        self._stream = stream or sys.stdout
        self._values: dict[str, float] = {}
        self._started = self._told = time.monotonic()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._values.update(values)
        if time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._tell(f"step {step}/{self._num_steps}", step)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._values.update(values)
        if epoch == self._num_epochs or time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._tell(
                f"epoch {epoch}/{self._num_epochs}", self._num_steps * epoch / self._num_epochs
            )

    def finish(self, summary: Mapping[str, Any]) -> None:
        for line in result_lines(summary):
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        pass

    def _tell(self, place: str, step: float) -> None:
        self._told = time.monotonic()
        left = (self._told - self._started) / max(step, 1) * (self._num_steps - step)
        print(
            "  ".join([place, *describe(self._values), f"{clock(left)} left"]),
            file=self._stream,
            flush=True,
        )


class BarReporter:
    """One moving line: epoch, bar, loss, accuracy, samples/s, share of communication, time left."""

    def __init__(self, num_steps: int, num_epochs: int, console: Console) -> None:
        self._num_epochs = num_epochs
        self._console = console
        self._values: dict[str, float] = {}
        one_line = Column(no_wrap=True, overflow="ellipsis")
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", table_column=one_line.copy())
        ]
        if console.width >= _NARROW:
            columns.append(BarColumn(bar_width=max(4, min(_WIDEST_BAR, console.width - 72))))
        columns += [
            TextColumn("{task.fields[words]}", table_column=one_line.copy()),
            TimeLeft(one_line.copy()),
        ]
        self._progress = Progress(*columns, console=console, refresh_per_second=4, transient=True)
        self._task = self._progress.add_task(f"epoch 0/{num_epochs}", total=num_steps, words="")
        self._progress.start()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        if values:
            self._values.update(values)
            self._progress.update(self._task, words="  ".join(describe(self._values)))
        self._progress.update(self._task, completed=step)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._values.update(values)
        words = "  ".join(describe(self._values))
        self._progress.update(
            self._task, description=f"epoch {epoch}/{self._num_epochs}", words=words
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.close()
        for line in result_lines(summary):
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        self._progress.stop()

    def renderable(self) -> RenderableType:
        """What is drawn, a line."""
        return self._progress.get_renderable()


class TimeLeft(ProgressColumn):
    """By the steps done and the time since the start: evaluations count, and it doesn't jump."""

    def render(self, task: Task) -> Text:
        if not task.completed or task.total is None or task.elapsed is None:
            return Text("-:-- left")
        return Text(f"{clock(task.elapsed / task.completed * (task.total - task.completed))} left")


def make_reporter(rank: int, num_steps: int, num_epochs: int) -> Reporter:
    """What fits this rank and where its output goes. `close` it in a `finally`, so that the
    terminal's cursor comes back.
    """
    if rank > 0:
        return NullReporter()
    if not on_terminal(os.environ, sys.stdout):
        return PlainReporter(num_steps, num_epochs)
    return BarReporter(num_steps, num_epochs, terminal_console(sys.stdout))


def on_terminal(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Does what is written to `stream` end on a terminal that can move its cursor?"""
    if environment.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return False
    told = environment.get(
        "TTY_COMPATIBLE"
    )  # by `launch.mpiexec`: ranks write to a pipe or a pty of their launcher's
    return told == "1" if told in ("0", "1") else stream.isatty()


def terminal_console(stream: TextIO) -> Console:
    """A console for a stream of which `on_terminal` is true; its width is the terminal's, or
    COLUMNS behind a pipe.
    """
    return Console(file=stream, force_terminal=True, force_interactive=True)


def describe(values: Mapping[str, float]) -> list[str]:
    """The values that are known, in a few words each: short enough for 80 columns together."""
    words = []
    if "loss" in values:
        words.append(f"loss {values['loss']:.4f}")
    if "test_accuracy" in values:
        words.append(f"acc {values['test_accuracy']:.2%}")
    elif "test_loss" in values:
        words.append(f"test {values['test_loss']:.4f}")
    if "samples_per_second" in values:
        words.append(f"{short(values['samples_per_second'])}/s")
    if "communication_share" in values:
        words.append(f"comm {values['communication_share']:.0%}")
    return words


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: what is in the summary of test accuracy or loss, speed,
    communication, and the folder.
    """
    lines = []
    if summary.get("test_accuracy") is not None:
        lines.append(f"test accuracy   {summary['test_accuracy']:.2%}")
    elif summary.get("test_loss") is not None:
        lines.append(f"test loss       {summary['test_loss']:.6g}")
    if summary.get("samples_per_second") is not None:
        seconds = (
            f" in {summary['seconds']:.1f} s on {ranks(summary)}" if "seconds" in summary else ""
        )
        lines.append(f"samples/s       {summary['samples_per_second']:,.0f}{seconds}")
    if summary.get("communication_share") is not None:
        lines.append(f"communication   {summary['communication_share']:.1%} of the time")
    if summary.get("folder") is not None:
        lines.append(f"run folder      {summary['folder']}")
    return lines


def ranks(summary: Mapping[str, Any]) -> str:
    count = summary.get("ranks", 1)
    return f"{count} rank{'s' if count != 1 else ''}"


def short(number: float) -> str:
    """Three digits and a unit: 950, 1.23k, 45.6M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
