"""What the user sees of a run: on a terminal one line that moves, elsewhere plain lines; on rank 0
only.
"""

import os
import sys

from dist_ml.train.display.bar import BarReporter
from dist_ml.train.display.plain import PlainReporter
from dist_ml.train.display.reporter import NullReporter, Reporter
from dist_ml.train.display.terminal import on_terminal, terminal_console

__all__ = [
    "BarReporter",
    "NullReporter",
    "PlainReporter",
    "Reporter",
    "make_reporter",
    "on_terminal",
    "terminal_console",
]


def make_reporter(rank: int, num_steps: int, num_epochs: int, done: int = 0) -> Reporter:
    """What fits this rank and where its output goes. `close` it in a `finally`, so that the
    terminal's cursor comes back. `done`: steps of earlier processes.
    """
    if rank > 0 or sys.stdout is None:  # `>&-`
        return NullReporter()
    if not on_terminal(os.environ, sys.stdout):
        return PlainReporter(num_steps, num_epochs, done=done)
    return BarReporter(num_steps, num_epochs, terminal_console(sys.stdout), done)
