"""Which threads may call MPI: asked for at start, granted or not by the library."""

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import MachineError

LEVELS = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")


def require_thread_level(comm: Communicator, needed: str, key: str) -> None:
    """`MachineError`, the same on all ranks, unless MPI grants at least `needed` to all of them.

    SERIALIZED: any thread, one at a time (gradients exchanged on a thread while the backward pass
    runs). MULTIPLE: several at once (parameters on a thread beside gradients on another). `key` is
    the setting that needs it. Collective.
    """
    least = min(comm.allgather_objects(LEVELS.index(comm.transport.thread_level)))
    if least < LEVELS.index(needed):
        error = MachineError(
            f"{key} needs MPI_THREAD_{needed}, but this MPI grants MPI_THREAD_{LEVELS[least]}: "
            "unset MPI4PY_RC_THREAD_LEVEL and MPI4PY_RC_THREADS, load an MPI that is built with "
            "threads, or choose another value"
        )
        error.agreed = True
        raise error
