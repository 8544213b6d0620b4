"""Failing together: a mistake that one rank sees ends all of them, with one message."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from dist_ml import errors
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DistMLError


@contextmanager
def collectively(comm: Communicator) -> Iterator[None]:
    """If the body raises a `DistMLError` on any rank, raise the lowest such rank's error on all ranks, marked as agreed.

    The body must not communicate: a rank that fails half-way would leave the others waiting in it. Errors that are not the
    user's pass through on their rank, and end the job by an abort.
    """
    failure: DistMLError | None = None
    try:
        yield
    except DistMLError as error:
        failure = error
    reports = comm.allgather_objects(None if failure is None else (type(failure).__name__, str(failure), socket.gethostname()))
    failed = [rank for rank, report in enumerate(reports) if report is not None]
    if not failed:
        return
    name, message, host = reports[failed[0]]
    where = "" if len(failed) == comm.size else f"rank {failed[0]} on {host}: "
    agreed: DistMLError = getattr(errors, name)(where + message)
    agreed.agreed = True
    raise agreed from failure
