"""Failing together: a mistake that one rank sees ends all of them, with one message."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from dist_ml import errors
from dist_ml.errors import DistMLError

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator

T = TypeVar("T")


@contextmanager
def raise_on_all_ranks(comm: "Communicator") -> Iterator[None]:
    """If the body raises a `DistMLError` on any rank, raise the lowest such rank's error on all
    ranks, marked as agreed.

    The body must not communicate: a rank that fails half-way would leave the others waiting in it.
    Errors that are not the user's pass through on their rank, and end the job by an abort.
    """
    failure: DistMLError | None = None
    try:
        yield
    except DistMLError as error:
        failure = error
    reports = comm.allgather_objects(
        None if failure is None else (type(failure).__name__, str(failure), socket.gethostname())
    )
    failed = [rank for rank, report in enumerate(reports) if report is not None]
    if not failed:
        return
    name, message, host = reports[failed[0]]
    where = "" if len(failed) == comm.size else f"rank {failed[0]} on {host}: "
    agreed: DistMLError = getattr(errors, name)(where + message)
    agreed.agreed = True
    raise agreed from failure


def from_root(comm: "Communicator", make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on all ranks; a `DistMLError` that it raises there is raised
    on all, marked as agreed.

    The result travels as a small Python object. `make` must not communicate.
    """
    failure: DistMLError | None = None
    answer: tuple[str | None, str, T | None] = (None, "", None)
    if comm.rank == 0:
        try:
            answer = (None, "", make())
        except DistMLError as error:
            failure, answer = error, (type(error).__name__, str(error), None)
    name, message, result = comm.broadcast_object(answer)
    if name is None:
        return result  # type: ignore[no-any-return]
    agreed: DistMLError = getattr(errors, name)(message)
    agreed.agreed = True
    raise agreed from failure
