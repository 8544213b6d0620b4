"""Commands in one process: what `launch`, `evaluate` and `doctor` make of arguments and ranks."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_ml.cli import evaluate, facts, launch, main, terminal
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError, ConfigError, DataError
from dist_ml.train import logs
from tests.thread_world import run_ranks

# --- launch


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[str], int, str | None, Any]]:
    """What would have been started; each job ends with status 7."""
    started: list[tuple[Sequence[str], int, str | None, Any]] = []

    def run(
        program: Sequence[str],
        ranks: int,
        mpi: str | None,
        time_limit_seconds: float | None,
        survive: bool,
    ) -> SimpleNamespace:
        assert not survive
        started.append((program[1:], ranks, mpi, time_limit_seconds))
        return SimpleNamespace(returncode=7)

    monkeypatch.setattr(launch.mpiexec, "run", run)
    return started


def test_a_command_is_started_on_ranks_as_it_stands(jobs: list[Any]) -> None:
    assert launch.main(["-n", "4", "--mpi", "openmpi", "--time-limit", "9", "train", "a=1"]) == 7
    assert jobs == [(["-m", "dist_ml", "train", "a=1"], 4, "openmpi", 9.0)]
    assert launch.main(["train", "-n=3"]) == 7  # what follows the command is the command's
    assert jobs[1] == (["-m", "dist_ml", "train", "-n=3"], 2, None, None)


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        pytest.param(["-n", "3", "train", "-m", "a=1,2"], ["train", "-m", "a=1,2", "ranks=3"],
                     id="a sweep gets the ranks"),
        pytest.param(["-n", "3", "train", "--multirun", "ranks=1,2"],
                     ["train", "--multirun", "ranks=1,2"], id="unless it sweeps them"),
        pytest.param(["train", "--help"], ["train", "--help"], id="help needs no ranks"),
        pytest.param(["train", "--cfg", "job"], ["train", "--cfg", "job"], id="nor does showing"),
    ],
)  # fmt: skip
def test_what_needs_no_ranks_of_its_own_runs_here(
    argv: list[str], given: list[str], jobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(main, "main", lambda words: seen.append(list(words)) or 5)  # type: ignore[func-returns-value]
    assert launch.main(argv) == 5
    assert (seen, jobs) == ([given], [])


def test_the_mpi_of_a_sweep_is_that_of_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_ML_MPI", "mpich")
    monkeypatch.setattr(main, "main", lambda _: 0)
    assert launch.main(["--mpi", "openmpi", "train", "-m", "a=1,2"]) == 0
    assert launch.os.environ["DIST_ML_MPI"] == "openmpi"


def test_no_command_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="which command"):
        launch.main(["-n", "2"])


# --- evaluate


def test_a_trained_run_is_evaluated_as_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    data = ["data=synthetic", "data.num_train=48", "data.num_test=20", "model.hidden=[4]"]
    try:
        assert main.main(["train", *data, "epochs=2", "batch_size=16", f"folder={folder}"]) == 0
        capsys.readouterr()
        assert evaluate.main([str(folder), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert evaluate.main([str(folder)]) == 0
    finally:
        logs.stop()
    summary = json.loads((folder / "summary.json").read_text())
    assert told["test_accuracy"] == summary["test_accuracy"]
    assert told["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
    words = capsys.readouterr().out
    assert f"test accuracy   {summary['test_accuracy']:.2%}" in words


def test_a_folder_that_holds_no_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["evaluate", str(tmp_path)]) == DataError.exit_status
    assert str(tmp_path) in capsys.readouterr().err


# --- facts for doctor


def test_every_rank_sees_all_ranks_and_which_sums_are_right() -> None:
    found = run_ranks(4, facts.world_facts, nodes=[0, 0, 0, 1])
    assert all(each == found[0] for each in found)
    world = found[0]
    assert [each.rank for each in world.ranks] == [0, 1, 2, 3]
    assert world.node_sizes == (3, 1)
    assert set(world.our_sums.values()) == {True}
    assert {"float32", "bfloat16", "bool"} <= set(world.our_sums)


def test_a_dtype_that_one_rank_cannot_sum_is_wrong_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    allreduce = Communicator.allreduce

    def unreliable(self: Communicator, x: torch.Tensor, op: Any = "sum") -> None:
        if x.dtype == torch.float64:
            raise CommunicationError("this dtype can't be summed")
        allreduce(self, x, op)
        if x.dtype == torch.int32 and self.rank == 1:
            x += 1

    monkeypatch.setattr(Communicator, "allreduce", unreliable)
    world = run_ranks(2, facts.world_facts)[0]
    wrong = {name for name, right in world.our_sums.items() if not right}
    assert wrong == {"float64", "int32"}


def test_a_rank_that_found_no_world_tells_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("PMI_SIZE", "4")
    found = facts.lone_facts("they are alone")
    assert (found.ranks[0].rank, found.launched_size) == (3, 4)
    assert found.singletons == "they are alone"
    assert found.ranks[0].cores


def test_where_there_is_no_shared_memory_its_size_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "SHARED_MEMORY", str(tmp_path / "absent"))
    found = facts.rank_facts(0, with_mpi=False)
    assert (found.shared_memory_bytes, found.shared_memory_free_bytes) == (None, None)
    monkeypatch.setattr(facts, "SHARED_MEMORY", str(tmp_path))
    assert facts.rank_facts(0, with_mpi=False).shared_memory_bytes


# --- how commands end


@pytest.mark.parametrize(
    ("error", "debug", "status", "words"),
    [
        (DataError("no such file"), False, DataError.exit_status, "error: no such file\n"),
        (KeyboardInterrupt(), False, terminal.INTERRUPTED, "stopped by Ctrl-C\n"),
        (KeyboardInterrupt(), True, terminal.INTERRUPTED, "stopped by Ctrl-C\n"),
    ],
    ids=["error", "interrupt", "interrupt, debug"],
)
def test_what_ends_a_command_is_said_once(
    error: Any, debug: bool, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.in_words(error, debug) == status
    assert capsys.readouterr().err == words


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["launch", "--debug"]) == ConfigError.exit_status
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.rstrip().splitlines()[-1].startswith("error: ")


def test_any_other_exception_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Sequence[str]) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(launch, "main", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main.main(["launch", "train"])
