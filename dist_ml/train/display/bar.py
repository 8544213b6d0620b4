"""One line that moves, on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dist_ml.train.display.words import clock, describe, result_lines

_WIDEST_BAR = 20
_NARROW = 60


class BarReporter:
    """One moving line: epoch, bar, loss, accuracy, samples/s, share of communication, time left."""

    def __init__(self, num_steps: int, num_epochs: int, console: Console, done: int = 0) -> None:
        """`done`: steps of earlier processes."""
        self._num_epochs = num_epochs
        self._console = console
        self._values: dict[str, float] = {}
        whole = Column(no_wrap=True, overflow="ellipsis")
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", table_column=whole.copy())
        ]
        if console.width >= _NARROW:
            columns.append(BarColumn(bar_width=max(4, min(_WIDEST_BAR, console.width - 72))))
        columns += [Words(), TimeLeft(whole.copy())]
        self._progress = Progress(*columns, console=console, refresh_per_second=4, transient=True)
        self._task = self._progress.add_task(
            f"epoch 0/{num_epochs}", total=num_steps, completed=done, words="", done=done
        )
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
            self.say(line)

    def say(self, words: str) -> None:
        self._console.print(words, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        self._progress.stop()

    def renderable(self) -> RenderableType:
        """What is drawn, a line."""
        return self._progress.get_renderable()


class Words(ProgressColumn):
    """What is known, the first to be cut where the line is short: its column alone may wrap, its
    text does not.
    """

    def render(self, task: Task) -> Text:
        return Text(task.fields["words"], no_wrap=True, overflow="ellipsis")


class TimeLeft(ProgressColumn):
    """By the steps done and the time since the start: evaluations count, and it doesn't jump."""

    def render(self, task: Task) -> Text:
        made = task.completed - task.fields["done"]
        if made <= 0 or task.total is None or task.elapsed is None:
            return Text("-:-- left")
        return Text(f"{clock(task.elapsed / made * (task.total - task.completed))} left")
