"""Start a program on P ranks with `mpiexec`.

`command` says what to run, as a value; `run` runs it. The two MPIs differ in what they need: Open
MPI refuses root and more ranks than cores unless told, and binds ranks to cores; both spin while
they wait, which is ruinous when ranks outnumber cores.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

from dist_ml.errors import ConfigError
from dist_ml.launch import mpi_installation
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.launch.job import Command, Completed, run_all
from dist_ml.launch.mpi_installation import MpiInstallation


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(
    program: Sequence[str],
    ranks: int,
    mpi: MpiInstallation,
    network: EmulatedNetwork | None = None,
    survive: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """The command line that starts `program` on `ranks` ranks, and the variables it wants by
    default.

    On this machine, or on the hosts of a `network`, which share this machine's cores. Threads per
    rank are the cores divided by the ranks. `survive`: ranks outlive others that die (ULFM), which
    only Open MPI can: `ConfigError` elsewhere.
    """
    if survive and mpi.flavour != "openmpi":
        raise ConfigError(
            f"--survive needs Open MPI, since {mpi.name}'s mpiexec ends all ranks when one dies; "
            "add --mpi openmpi"
        )
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // ranks))}
    argv = [str(mpi.mpiexec), "-n", str(ranks)]
    crowded = ranks > cores()
    if mpi.flavour == "openmpi":
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        environment |= {
            "OMPI_MCA_osc": "^ucx"
        }  # else its wheel complains of UCX at every shared window
        if mpi.origin == "wheel" or crowded:
            argv += ["--oversubscribe", "--bind-to", "none"]
        if crowded:
            environment["OMPI_MCA_mpi_yield_when_idle"] = "1"
        if survive:
            argv += ["--with-ft", "ulfm"]
    elif mpi.flavour == "mpich" and crowded:
        environment["MPIR_CVAR_POLLS_BEFORE_YIELD"] = "1"
    if network is not None:
        argv = [*network.at_head, *argv, *network.mpiexec_options(mpi.flavour, ranks)]
        environment |= network.mpi_environment(mpi.flavour)
    return [*argv, *program], environment


def run(
    program: Sequence[str],
    ranks: int,
    mpi: MpiInstallation | str | None = None,
    *,
    time_limit_seconds: float | None = None,
    capture: bool = False,
    environment: Mapping[str, str] | None = None,
    network: EmulatedNetwork | None = None,
    survive: bool = False,
) -> Completed:
    """Run `program` on `ranks` ranks and wait for its end, as `job.run_all` does: always bounded,
    nothing left behind.

    `mpi` is an installation or the name of one (default: the first found). What the user's own
    environment sets wins over the defaults of `command`; `environment` wins over both. On the hosts
    of `network`, ranks fill one host after the other.
    """
    if not isinstance(mpi, MpiInstallation):
        mpi = mpi_installation.find(mpi)
    argv, defaults = command(program, ranks, mpi, network, survive)
    chosen = {
        **defaults,
        **os.environ,
        "DIST_ML_MPI": mpi.name,
        **_terminal(capture),
        **(environment or {}),
    }
    return run_all([Command(argv, chosen)], time_limit_seconds=time_limit_seconds, capture=capture)[
        0
    ]


def _terminal(capture: bool) -> dict[str, str]:
    """Whether the output ends in a terminal, and how wide that is: MPICH's ranks always see a pipe,
    Open MPI's a pty.
    """
    if capture or sys.stdout is None or not sys.stdout.isatty():  # None: `>&-`
        return {"TTY_COMPATIBLE": "0"}
    size = shutil.get_terminal_size()
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}
