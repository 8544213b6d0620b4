"""A standard stream that can't be written: closed by its reader, or on a full disk."""

import contextlib
import os
from typing import TextIO


def discard(stream: TextIO) -> None:
    """Let what is left in the stream's buffer, and all that follows, go nowhere: else the
    interpreter would try again when it ends, and fail.
    """
    with contextlib.suppress(OSError, ValueError):  # a stream without a file underneath
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
