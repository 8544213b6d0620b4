"""Is there a terminal at the end of a stream?

mpiexec shows ranks a pipe, so `dist-ml launch` passes on what it sees itself: TTY_COMPATIBLE and
COLUMNS.
"""

from collections.abc import Mapping
from typing import TextIO

from rich.console import Console


def on_terminal(environment: Mapping[str, str], stream: TextIO | None) -> bool:
    """Does what is written to `stream` end on a terminal that can move its cursor? None: the
    process began without that stream (`>&-`).
    """
    if stream is None or environment.get("TERM", "dumb") in ("", "dumb", "unknown"):
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
