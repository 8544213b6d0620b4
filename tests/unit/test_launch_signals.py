"""Signals, stacks and variables around a launch, in this process and without ranks."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_ml.launch import mpiexec, stacks
from dist_ml.launch.job import Command, Completed, _exit_status
from dist_ml.launch.mpi_installation import MpiInstallation
from dist_ml.launch.process import handled, passed_on, signals_wait, sigterm_raises
from dist_ml.launch.shared_memory import remove_orphans
from dist_ml.launch.streams import discard

MPICH = MpiInstallation("mpich", "wheel", Path("/opt/bin/mpiexec"), Path("/opt/lib/libmpi.so"))


@pytest.fixture
def default_sigterm() -> Any:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


class TestSigterm:
    def test_it_raises_within_the_block_so_that_clean_ups_run(self, default_sigterm: None) -> None:
        log = []

        def ended() -> None:
            with sigterm_raises():
                try:
                    signal.raise_signal(signal.SIGTERM)
                finally:
                    log.append("cleaned up")

        with pytest.raises(SystemExit) as caught:
            ended()
        assert (caught.value.code, log) == (143, ["cleaned up"])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_a_programs_own_handler_is_left_in_place(self, default_sigterm: None) -> None:
        seen: list[int] = []

        def own(number: int, _: Any) -> None:
            seen.append(number)

        signal.signal(signal.SIGTERM, own)
        with sigterm_raises():
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is own

    def test_off_the_main_thread_nothing_is_arranged(self, default_sigterm: None) -> None:
        found: list[Any] = []

        def body() -> None:
            with sigterm_raises():
                found.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        assert found == [signal.SIG_DFL]


def test_an_interrupt_waits_for_the_end_of_a_clean_up() -> None:
    log: list[str] = []

    def interrupted() -> None:
        with signals_wait():
            signal.raise_signal(signal.SIGINT)
            log.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert log == ["cleaned up"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, None),
        ({"PMI_RANK": "3"}, 3),
        ({"OMPI_COMM_WORLD_RANK": "2", "SLURM_PROCID": "9"}, 2),
        ({"SLURM_PROCID": "5"}, 5),
        ({"RANK": "none"}, None),
        ({"PMIX_RANK": "", "RANK": "4"}, 4),
    ],
    ids=str,
)
def test_the_launchers_variables_tell_the_rank(variables: dict[str, str], rank: int | None) -> None:
    assert stacks.has_rank(variables) == (rank is not None)
    assert stacks.rank(variables) == (rank or 0)


def test_stacks_are_collected_in_the_order_of_ranks(tmp_path: Path) -> None:
    assert not stacks.pending(tmp_path)
    for rank, text in ((10, "in ten"), (2, "in two\n"), (0, "")):
        (tmp_path / f"rank-{rank}.stack").write_text(text)
    assert stacks.pending(tmp_path), "rank 0 has not written yet"
    told = stacks.collect(tmp_path).splitlines()
    assert told == [
        "--- rank 0 stood here", "(no stack: it had ended)",
        "--- rank 2 stood here", "in two",
        "--- rank 10 stood here", "in ten",
    ]  # fmt: skip


def test_a_signal_that_is_passed_on_is_still_heard_by_who_arranged_it_before() -> None:
    """Restarts know by it that they were told to stop while a job failed."""
    heard: list[int] = []
    with handled(lambda number, _: heard.append(number), signal.SIGUSR1):
        with passed_on(signal.SIGUSR1, []):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1] * 2


@pytest.mark.parametrize(("returncode", "status"), [(0, 0), (3, 3), (-9, 137), (-15, 143)])
def test_a_signal_gives_the_status_that_a_shell_would(returncode: int, status: int) -> None:
    assert _exit_status(returncode) == status


class TestVariables:
    """What mpiexec's ranks get, from weakest to strongest: defaults, the user's, the caller's."""

    def environment(self, monkeypatch: pytest.MonkeyPatch, **passed: Any) -> dict[str, str]:
        seen: list[Command] = []

        def noted(commands: Sequence[Command], **_: Any) -> list[Completed]:
            seen.extend(commands)
            return [Completed(0, "", "", False, "")]

        monkeypatch.setattr(mpiexec, "run_all", noted)
        mpiexec.run(["program"], 2, MPICH, **passed)
        assert list(seen[0].argv) == ["/opt/bin/mpiexec", "-n", "2", "program"]
        return dict(seen[0].environment)

    def test_the_users_own_win_over_defaults_and_the_callers_over_both(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mpiexec, "cores", lambda: 8)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert self.environment(monkeypatch)["OMP_NUM_THREADS"] == "4"
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert self.environment(monkeypatch)["OMP_NUM_THREADS"] == "1"
        passed = self.environment(monkeypatch, environment={"OMP_NUM_THREADS": "2"})
        assert passed["OMP_NUM_THREADS"] == "2"

    def test_ranks_take_the_mpi_that_starts_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DIST_ML_MPI", "openmpi")
        assert self.environment(monkeypatch)["DIST_ML_MPI"] == "mpich"

    def test_a_terminal_is_passed_on_with_its_width_and_a_capture_is_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("LINES", "10")
        shown = self.environment(monkeypatch)
        assert (shown["TTY_COMPATIBLE"], shown["COLUMNS"]) == ("1", "40")
        assert self.environment(monkeypatch, capture=True)["TTY_COMPATIBLE"] == "0"


def test_a_young_segment_is_left_to_the_rank_that_is_about_to_map_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mpich_shm_1_0"
    file.write_bytes(b"x")
    assert remove_orphans(tmp_path) == []
    monkeypatch.setattr("dist_ml.launch.shared_memory._SECONDS_TO_MAP", 0.05)
    monkeypatch.setattr("dist_ml.launch.shared_memory._LOOK_SECONDS", 0.02)
    assert remove_orphans(tmp_path, wait=True) == [file]
    assert not file.exists()
    file.write_bytes(b"x")
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert remove_orphans(tmp_path, wait=True) == [], "another user's"


def test_what_is_left_for_a_stream_that_is_gone_goes_nowhere() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    os.close(reader)
    stream.write("never read")
    discard(stream)
    stream.write("nor this")
    stream.close()
