"""The one place where the world is made and where failures on ranks end.

| what a rank raises               | what is shown                     | how the ranks end        |
|----------------------------------|-----------------------------------|--------------------------|
| `DistMLError`, agreed on         | `error: message`, by rank 0       | its exit status          |
| `DistMLError` on one rank        | `error on rank 2 (host): message` | abort                    |
| any other exception              | its traceback with rank and host  | abort                    |
| Ctrl-C                           | `stopped by Ctrl-C`, by rank 0    | abort                    |
| SIGTERM on the only rank         | `stopped by SIGTERM`              | it cleans up and ends    |
| SIGTERM on one of several        | what the launcher says            | at once, inside MPI too  |
| SIGTERM, SIGUSR1 in a saved run  | `stopped by …`, by rank 0         | saved, with status 75    |

Of several ranks that fail on their own the first one speaks; all of them write to their own
`log/rank-<r>.log`.
"""

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from dist_ml.cli import terminal
from dist_ml.errors import CommunicationError, DistMLError, MachineError
from dist_ml.launch.process import sigterm_raises

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator

# An abort ends the other ranks within milliseconds, so letting lower ranks go first is enough to
# have one of them speak.
_TURN_SECONDS = 0.02
_LONGEST_WAIT_SECONDS = 1.0
# What a rank has written reaches the terminal through its launcher, which forgets what it has not
# read yet when the job is aborted.
_DELIVERY_SECONDS = 0.2
_FAILED = 1


def run_on_ranks(body: "Callable[[Communicator], int]", debug: bool = False) -> int:
    """Make the world, run `body` on every rank of it, and give its exit status; see the table above
    for failures.
    """
    try:
        from dist_ml.comm import mpi
        from dist_ml.comm.mpi_transport import MpiTransport
        from dist_ml.comm.survivors import leave

        world = mpi.world()
    except MachineError as error:
        terminal.complain(f"error: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        terminal.complain("stopped by Ctrl-C")
        os._exit(terminal.INTERRUPTED)
    if isinstance(world.transport, MpiTransport):
        world.transport.end_when_stuck(lambda message: end_stuck(world, message))
    try:
        with sigterm_raises() if world.size == 1 else nullcontext():
            status = body(world)
        leave(world, status)
        return status
    except SystemExit as stop:
        _log_failure(stop)
        terminal.complain("stopped by SIGTERM")
        raise
    except DistMLError as error:
        if error.agreed or world.size == 1:
            status = _end_together(error, world.rank, debug)
            leave(world, status)
            return status
        end_alone(world, error, debug)
    except KeyboardInterrupt as interrupt:
        _log_failure(interrupt)
        end_interrupted(world)
    except Exception as error:
        if world.size == 1:
            _log_failure(error)
            raise
        cause = _cause(world, error)
        end_alone(world, cause, debug=cause is error)
    raise AssertionError("an abort returned")


def _cause(world: "Communicator", error: Exception) -> Exception:
    """What MPI raises when it finds a dead rank's memory gone tells less than who died."""
    from dist_ml.comm.peer_monitor import death_soon

    death = death_soon(world.transport.peers) if isinstance(error, RuntimeError) else None
    return error if death is None else CommunicationError(death)


def _end_together(error: DistMLError, rank: int, debug: bool) -> int:
    if rank == 0:
        _log_failure(error)
        terminal.write_error(f"{_traceback(error) if debug else ''}error: {error}")
    return error.exit_status


def end_alone(world: "Communicator", error: BaseException, debug: bool) -> None:
    """Speak if no other rank has, then end the job. `debug`: with the traceback."""
    try:
        first = _log_failure(error)
        if first is None:
            time.sleep(min(world.rank * _TURN_SECONDS, _LONGEST_WAIT_SECONDS))
        diverged = _record(world, error, first is not False)
        if first is not False:
            where = f"rank {world.rank} of {world.size} on {socket.gethostname()}"
            words = f"error on {where}: {_describe(error)}{diverged}"
            _write_error(f"{_traceback(error)}{words}" if debug else words)
        else:  # the speaker's abort ends this rank; its own is for a speaker that can't
            time.sleep(_LONGEST_WAIT_SECONDS)
    finally:  # whatever the report of the failure met
        world.abort(error.exit_status if isinstance(error, DistMLError) else _FAILED)


def _record(world: "Communicator", error: BaseException, speaks: bool) -> str:
    """Write this rank's flight record and, if it is the one that `speaks`, all others'. In words
    what no rank knows by itself: that they were in different calls.
    """
    if world.recorder.is_final:  # the watchdog has
        return ""
    try:
        from dist_ml.train import hang

        if not speaks:
            hang.write(world, _describe(error))
            return ""
        finding = hang.write_all(world, _describe(error), _LONGEST_WAIT_SECONDS)
    except Exception:  # as `_log_failure`
        return ""
    return f"; {finding.words}" if finding is not None and finding.kind == "diverged" else ""


def _write_error(text: str) -> None:
    """To stderr, from any rank; a stderr that is closed or full loses it and nothing more."""
    terminal.write_error(text)
    time.sleep(_DELIVERY_SECONDS)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def end_stuck(world: "Communicator", message: str) -> None:
    """On a thread, while the main one is in a call that can't end: an abort may be stuck, too."""
    last_resort = threading.Timer(_LONGEST_WAIT_SECONDS + 2.0, os._exit, [_FAILED])
    last_resort.daemon = True
    last_resort.start()
    end_alone(world, CommunicationError(message), debug=False)


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, DistMLError) else f"{type(error).__name__}: {error}"


def _log_failure(error: BaseException) -> bool | None:
    """Write the traceback to this rank's log; was it the run's first? None when there is no run
    folder yet, or it can't be written.
    """
    from dist_ml.train import logs

    try:
        return logs.record_failure(error)
    except Exception:  # it must not hide the failure that it was to record, nor keep the rank alive
        return None


def end_interrupted(world: "Communicator") -> None:
    try:
        if world.rank == 0:
            _write_error("\nstopped by Ctrl-C")
    finally:
        world.abort(terminal.INTERRUPTED)
