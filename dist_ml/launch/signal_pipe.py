"""Signals that a thread hears. Python's own handlers wait for the end of a blocking MPI call, but
the interpreter's C code writes the number of each signal into a pipe at once.
"""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signal_pipe() -> Iterator[int]:
    """Within the block, a descriptor from which the numbers of the signals that come can be read,
    a byte each: of those that have a handler of Python's. At its end it reads as closed; the caller
    closes it. For the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
