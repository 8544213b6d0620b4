"""The command lines that start ranks, as values."""

import os
from pathlib import Path

import pytest

from dist_ml.cli import launch
from dist_ml.errors import ConfigError, MachineError
from dist_ml.launch import mpiexec
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.launch.emulated_network.rates import bits_per_second
from dist_ml.launch.job import Completed
from dist_ml.launch.mpi_installation import Flavour, MpiInstallation


def installation(flavour: Flavour, origin: str = "wheel") -> MpiInstallation:
    return MpiInstallation(
        flavour, "wheel" if origin == "wheel" else "system", Path("/mpi/bin/mpiexec"), None
    )


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpiexec, "cores", lambda: 2)


def test_mpich_needs_next_to_nothing() -> None:
    argv, environment = mpiexec.command(["prog", "-x"], 2, installation("mpich"))
    assert argv == ["/mpi/bin/mpiexec", "-n", "2", "prog", "-x"]
    assert environment == {"OMP_NUM_THREADS": "1"}


def test_open_mpi_as_root_unbound() -> None:
    argv, environment = mpiexec.command(["prog"], 1, installation("openmpi"))
    assert argv == ["/mpi/bin/mpiexec", "-n", "1", "--oversubscribe", "--bind-to", "none", "prog"]
    assert (
        environment["OMPI_ALLOW_RUN_AS_ROOT"]
        == environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"]
        == "1"
    )
    assert environment["OMP_NUM_THREADS"] == "2"
    assert "OMPI_MCA_mpi_yield_when_idle" not in environment


def test_open_mpi_alone_survives_deaths() -> None:
    argv, _ = mpiexec.command(["prog"], 2, installation("openmpi"), survive=True)
    assert argv[-3:] == ["--with-ft", "ulfm", "prog"]
    with pytest.raises(ConfigError, match="--survive needs Open MPI, since mpich's mpiexec ends"):
        mpiexec.command(["prog"], 2, installation("mpich"), survive=True)


@pytest.mark.parametrize(
    ("flavour", "variable"),
    [("mpich", "MPIR_CVAR_POLLS_BEFORE_YIELD"), ("openmpi", "OMPI_MCA_mpi_yield_when_idle")],
)
def test_waiting_ranks_yield_when_there_are_more_than_cores(
    flavour: Flavour, variable: str
) -> None:
    assert variable in mpiexec.command(["prog"], 3, installation(flavour))[1]
    assert variable not in mpiexec.command(["prog"], 2, installation(flavour))[1]


def test_the_sites_own_binding_is_left_alone_unless_ranks_outnumber_cores() -> None:
    assert "--bind-to" not in mpiexec.command(["prog"], 2, installation("openmpi", "system"))[0]
    assert "--bind-to" in mpiexec.command(["prog"], 3, installation("openmpi", "system"))[0]


def test_emulated_network_fills_one_host_after_the_other() -> None:
    options = EmulatedNetwork(hosts=3).mpiexec_options("mpich", 5)
    assert options[options.index("-hosts") + 1] == "h0:2,h1:2,h2:1"
    options = EmulatedNetwork(hosts=3).mpiexec_options("openmpi", 2)
    assert options[options.index("--host") + 1] == "h0:1,h1:1"
    with pytest.raises(MachineError, match="mpich or --mpi openmpi"):
        EmulatedNetwork(hosts=3).mpiexec_options("other", 2)


@pytest.mark.parametrize(
    ("rate", "bits"), [("1gbit", 1e9), ("2.5gbit", 2.5e9), ("100mbit", 1e8), ("500kbit", 5e5)]
)
def test_rates(rate: str, bits: float) -> None:
    assert bits_per_second(rate) == bits


@pytest.mark.parametrize("rate", ["", "gbit", "0gbit", "1", "fast", "-1mbit", "1 gbps"])
def test_what_is_no_rate(rate: str) -> None:
    with pytest.raises(MachineError, match="100mbit"):
        EmulatedNetwork(hosts=2, rate=rate)


def test_launch_passes_the_command_on_and_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def fake_run(
        program: list[str],
        ranks: int,
        mpi: str | None,
        *,
        time_limit_seconds: float | None,
        survive: bool,
    ) -> Completed:
        seen.extend([program[1:], ranks, mpi, time_limit_seconds, survive])
        return Completed(7, "", "", False, "")

    monkeypatch.setattr(mpiexec, "run", fake_run)
    flags = ["-n", "3", "--mpi", "openmpi", "--time-limit", "9", "--survive"]
    assert launch.main([*flags, "train", "-x", "lr=1"]) == 7
    assert seen == [["-m", "dist_ml", "train", "-x", "lr=1"], 3, "openmpi", 9.0, True]


@pytest.mark.parametrize(
    "arguments", [["-n", "0", "train"], ["-n", "two", "train"], [], ["--mpi", "intel", "train"]]
)
def test_launch_refuses_in_words(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--help"):
        launch.main(arguments)


@pytest.mark.parametrize(
    ("flags", "passed_on"),
    [
        (["--help"], ["--help"]),
        (["--cfg", "job"], ["--cfg", "job"]),
        (["-m", "lr=1,2"], ["-m", "lr=1,2", "ranks=3"]),
        (["--multirun", "ranks=1,2"], ["--multirun", "ranks=1,2"]),
    ],
)
def test_launch_starts_no_ranks_for_what_needs_none(
    flags: list[str], passed_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "dist_ml.cli.main.main", lambda arguments: seen.append(list(arguments)) or 0
    )
    monkeypatch.setenv("DIST_ML_MPI", "mpich")
    assert launch.main(["-n", "3", "--mpi", "openmpi", "train", *flags]) == 0
    assert seen == [["train", *passed_on]]
    assert os.environ["DIST_ML_MPI"] == "openmpi"


def test_a_closed_standard_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # what Python makes of `>&-`
    assert mpiexec._terminal(capture=False) == {"TTY_COMPATIBLE": "0"}
