"""Words on the terminal, once: under a launcher only rank 0 speaks, by its launcher's variables, so
that MPI isn't needed.
"""

import argparse
import os
import sys
import traceback
from typing import NoReturn

from dist_ml.errors import ConfigError, DistMLError, MachineError
from dist_ml.launch import stacks
from dist_ml.launch.streams import discard

INTERRUPTED = 130  # 128 + SIGINT, as a shell gives it


def is_speaker() -> bool:
    """Is this the process whose words are shown: rank 0, or the only one?"""
    return stacks.rank(os.environ) == 0


def say(text: str) -> None:
    """Print to stdout, on rank 0. A reader that has left (`| head -1`) is no error; `MachineError`
    where the words are lost otherwise (a full disk).
    """
    if not is_speaker():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise MachineError(
            f"standard output can't be written: {error.strerror or error}; send it elsewhere"
        ) from error


def complain(text: str) -> None:
    """Print to stderr, on rank 0."""
    if is_speaker():
        write_error(text)


def write_error(text: str) -> None:
    """Print to stderr, on any rank. Never raises: what can't be written there is lost."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard(sys.stderr)


def in_words(error: DistMLError | KeyboardInterrupt, debug: bool) -> int:
    """Say what ended the command, an error that is the user's or an interrupt, in a short message;
    its exit status.

    For what runs outside the ranks' world; inside it, `ranks.run_on_ranks` ends failures first.
    """
    if isinstance(error, KeyboardInterrupt):
        complain("stopped by Ctrl-C")
        return INTERRUPTED
    if debug:
        complain("".join(traceback.format_exception(error)))
    complain(f"error: {error}")
    return error.exit_status


def show_cursor() -> None:
    """A rank that was killed while it drew its progress bar has left the terminal's cursor
    hidden.
    """
    if (
        sys.stdout is not None  # `>&-`
        and sys.stdout.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
        and os.environ.get("TTY_COMPATIBLE") != "0"
    ):
        sys.stdout.write("\x1b[?25h")
        sys.stdout.flush()


class Parser(argparse.ArgumentParser):
    """An argument parser that says what it has to say once, and raises `ConfigError` on wrong
    usage.
    """

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help tells what there is)")

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 — argparse's own signature
        if message:
            say(message.rstrip())
