"""Each rank's own log, `log/rank-0000.log …` in the run folder; nothing of it is repeated on the
terminal.

The library logs to the logger `dist_ml`. Its file handler is the only state, and it is the standard
library's.
"""

import contextlib
import fcntl
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from dist_ml.errors import DistMLError

LOGGER = logging.getLogger("dist_ml")
_FIRST_FAILURE = "first-failure"
_ATTEMPTS, _PAUSE_SECONDS = 5, 0.1


class _LogFile(logging.FileHandler):
    """Lines that a full disk has no room for are lost; the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def start(folder: Path, rank: int, claimed: TextIO | None = None) -> Path:
    """Send this rank's log, and Python's warnings, to `folder/log/rank-<rank>.log`, which is
    returned.

    The folder must exist. The log is locked until this process ends, by which `is_alive` knows;
    `claimed` is one that is open and locked already. `BlockingIOError` where another process has
    it. A log that an earlier run in this process started is closed.
    """
    stop()
    file = _file_of(folder, rank)
    handler = _LogFile(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.stream = claimed or claim(folder, rank)  # type: ignore[assignment]
    for logger in _loggers():
        logger.addHandler(handler)
        logger.propagate = False
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(True)
    LOGGER.info("rank %d on %s, process %d", rank, socket.gethostname(), os.getpid())
    return file


def claim(folder: Path, rank: int = 0) -> TextIO:
    """The rank's log, open to append and locked. `BlockingIOError` where another process has it;
    where the file system has no locks nobody can tell.
    """
    stream = _file_of(folder, rank).open("a")
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps `is_alive`, which lets it go at once
            if attempt + 1 == _ATTEMPTS:
                stream.close()
                raise
            time.sleep(_PAUSE_SECONDS)
        except OSError:
            break
        else:
            break
    return stream


def release(claimed: TextIO) -> None:
    """Give a claimed log back, unless `start` has taken it."""
    if all(handler.stream is not claimed for handler in _file_handlers()):
        claimed.close()


def forget_failure(folder: Path) -> None:
    """A failed run goes on: `first_failure` has nothing to tell any more."""
    (folder / "log" / _FIRST_FAILURE).unlink(missing_ok=True)


def stop() -> None:
    """Close this rank's log; without one, do nothing."""
    handlers = set(_file_handlers())
    for logger in _loggers():
        for handler in handlers:
            logger.removeHandler(handler)
        logger.propagate = True
    logging.captureWarnings(False)
    for handler in handlers:
        with contextlib.suppress(OSError):  # a full disk
            handler.close()


def record_failure(error: BaseException) -> bool | None:
    """Write the error's traceback to this rank's log; True on the one rank of the run that does so
    first.

    The first one's words are kept for `first_failure`. None when no log was started: then nobody
    can tell who was first. Never raises: whoever reports a failure must still reach its end, on a
    full disk, too.
    """
    handlers = _file_handlers()
    if not handlers:
        return None
    LOGGER.critical("this rank failed", exc_info=error)
    log = Path(handlers[0].baseFilename)
    try:
        descriptor = os.open(
            log.with_name(_FIRST_FAILURE), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644
        )
    except FileExistsError:
        return False
    except OSError:
        return None
    words = _words(error, int(log.stem.removeprefix("rank-")))
    with contextlib.suppress(OSError), os.fdopen(descriptor, "w") as file:
        file.write(words)
    return True


def _words(error: BaseException, rank: int) -> str:
    if isinstance(error, DistMLError) and error.agreed:
        return str(error)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "stopped by Ctrl-C" if isinstance(error, KeyboardInterrupt) else "stopped by SIGTERM"
    kind = (
        ""
        if isinstance(error, DistMLError)
        else f"{type(error).__name__}{': ' if str(error) else ''}"
    )
    return f"rank {rank} on {socket.gethostname()}: {kind}{error}"


def is_alive(folder: Path) -> bool:
    """Does rank 0 of the run in `folder` still hold its log? False where the file system has no
    locks.
    """
    try:
        with (folder / "log" / "rank-0000.log").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def first_failure(folder: Path) -> str | None:
    """What the run's first failing rank said; None if none did."""
    try:
        return (folder / "log" / _FIRST_FAILURE).read_text(errors="replace").strip()
    except OSError:
        return None


def _file_of(folder: Path, rank: int) -> Path:
    return folder / "log" / f"rank-{rank:04}.log"


def _loggers() -> list[logging.Logger]:
    return [LOGGER, logging.getLogger("py.warnings")]


def _file_handlers() -> list[logging.FileHandler]:
    return [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]
