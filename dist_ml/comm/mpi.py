"""MPI, through mpi4py: the only file that imports it.

Importing mpi4py.MPI calls MPI_Init, so the import happens in `world()`, once, when a launcher has
started this program.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from dist_ml.comm.backoff import fine_timers
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.mpi_family import MpiFamily
from dist_ml.comm.mpi_transport import MpiTransport, granted
from dist_ml.comm.peer_monitor import this_process
from dist_ml.comm.traffic import Traffic
from dist_ml.errors import MachineError
from dist_ml.launch.extras import install_command
from dist_ml.launch.mpi_installation import select_library

# Set by mpiexec, srun and the like in each rank that they start, with the number of ranks that were
# asked for.
_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PALS_NRANKS",
    "FLUX_JOB_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
_LAUNCHER_VARIABLES = (
    *_SIZE_VARIABLES,
    "PMI_RANK",
    "PMI_FD",
    "PMIX_RANK",
    "HYDI_CONTROL_FD",
    "MPI_LOCALRANKID",
    "PALS_RANKID",
)


def launched() -> bool:
    """Has an MPI launcher started this program? Alone, it needs no MPI."""
    return any(variable in os.environ for variable in _LAUNCHER_VARIABLES)


def launched_size() -> int | None:
    """How many ranks the launcher says it started."""
    return next(
        (int(os.environ[name]) for name in _SIZE_VARIABLES if os.environ.get(name, "").isdigit()),
        None,
    )


def world(timing: bool = False) -> Communicator:
    """All ranks of this run: MPI's world under a launcher, a loopback otherwise. Call it once, from
    the command line.

    `MachineError` when the launcher started several ranks and MPI sees one: they would train as so
    many worlds of one.
    """
    if not launched():
        return Communicator(Loopback(), traffic=Traffic(timing))
    fine_timers()
    mpi = load()
    expected, size = launched_size(), mpi.COMM_WORLD.Get_size()
    if size == 1 and expected is not None and expected > 1:
        raise MachineError(singletons_message(expected, mpi.get_vendor()[0]))
    comm = mpi.COMM_WORLD
    node = comm.Split_type(mpi.COMM_TYPE_SHARED, key=comm.Get_rank())
    peers = tuple(node.allgather(this_process(comm.Get_rank())))
    node.Free()
    return Communicator(MpiTransport(mpi, comm, MpiFamily(peers)), traffic=Traffic(timing))


def load() -> Any:
    """The module mpi4py.MPI, initialised; `MachineError` where there is no MPI library."""
    select_library()
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MachineError(
            f"started by an MPI launcher, but no MPI library can be loaded ({reason}); run: "
            f"{install_command('mpich')}, or load the site's MPI module"
        ) from error


def raw_allreduce(comm: Communicator, array: Array) -> Callable[[], None]:
    """mpi4py's own in-place sum of `array`, with none of our checks: what benchmarks compare
    with.
    """
    transport = comm.transport
    assert isinstance(transport, MpiTransport), "a raw allreduce needs MPI"
    group, in_place, op = transport.comm, load().IN_PLACE, load().SUM
    return lambda: group.Allreduce(in_place, array, op)


def library_facts() -> dict[str, str]:
    """What the loaded MPI says of itself: `vendor` (name and version), `standard` and
    `thread_level`.
    """
    mpi = load()
    name, version = mpi.get_vendor()
    standard = ".".join(map(str, mpi.Get_version()))
    return {
        "vendor": f"{name} {'.'.join(map(str, version))}",
        "standard": standard,
        "thread_level": granted(mpi),
    }


def singletons_message(expected: int, vendor: str) -> str:
    return (
        f"{expected} ranks were started, but {vendor} joined them into {expected} worlds of one "
        "rank: launcher and MPI library "
        "do not speak the same protocol. Under Slurm use `srun --mpi=pmi2` with MPICH and Intel "
        "MPI, `srun --mpi=pmix` with "
        "Open MPI; otherwise start with the mpiexec of the MPI that is loaded (`dist-ml doctor` "
        "names it)"
    )
