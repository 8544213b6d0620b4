"""How many calls lie between the command and the first step, and between a step and MPI: counted on
the real path, from the frames that stand when the last call is made.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dist_ml.cli import main
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mpi_transport import MpiTransport
from dist_ml.config.train import TrainConfig
from dist_ml.train import logs
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.step import TrainStep
from tests.configurations import train_config
from tests.thread_world import ThreadTransport, run_ranks

MOST_FROM_COMMAND_TO_STEP = 9
MOST_FROM_STEP_TO_MPI = 5
DATA = ("data=synthetic", "data.num_train=32", "data.num_test=8", "model.hidden=[4]")


def standing(frame: FrameType | None) -> list[str]:
    """The functions of dist_ml that are being called, outermost first."""
    names: list[str] = []
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] == "dist_ml":
            names.append(f"{module.removeprefix('dist_ml.')}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return names[::-1]


class Mpi:
    """What `MpiTransport` takes from mpi4py's module."""

    IN_PLACE, SUM, MAX, MIN = "in place", "sum", "max", "min"

    @staticmethod
    def get_vendor() -> tuple[str, tuple[int, int, int]]:
        return "threads", (0, 0, 0)


class MpiComm:
    """An MPI communicator made of threads, that notes who calls `Allreduce`."""

    def __init__(self, threads: ThreadTransport, paths: list[list[str]]) -> None:
        self._threads, self._paths = threads, paths

    def Get_rank(self) -> int:  # noqa: N802 - mpi4py's name
        return self._threads.rank

    def Get_size(self) -> int:  # noqa: N802
        return self._threads.size

    def Allreduce(self, source: str, array: Any, op: str) -> None:  # noqa: N802
        assert source == Mpi.IN_PLACE
        self._paths.append(standing(sys._getframe(1)))
        self._threads.allreduce(array, op)


def config(*overrides: str) -> TrainConfig:
    return train_config(*DATA, *overrides)


def paths_to_mpi(*overrides: str) -> list[list[str]]:
    """Of one step on two ranks: whoever stands from `TrainStep` on when MPI is called."""
    train = config(*overrides)

    def body(comm: Communicator) -> list[list[str]]:
        trainer = build_trainer(train, build_mesh(train, comm))
        paths: list[list[str]] = []
        through_mpi(trainer.mesh.comm("data"), paths)
        trainer.step(0, 0)
        trainer.close()
        return [path[path.index("train.step:TrainStep.run") :] for path in paths]

    return run_ranks(2, body)[0]


def through_mpi(comm: Communicator, paths: list[list[str]]) -> None:
    """From now on `comm` communicates through `MpiTransport`."""
    comm.transport = MpiTransport(Mpi(), MpiComm(comm.transport, paths))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="default"),
        pytest.param(("allreduce.overlap=none", "optimizer=adamw"), id="no overlap"),
        pytest.param(("clip_norm=1.0", "nonfinite=skip", "accumulation=2"), id="guarded"),
    ],
)
def test_from_a_step_to_mpi_there_are_at_most_five_calls(overrides: tuple[str, ...]) -> None:
    paths = paths_to_mpi("allreduce=native", *overrides)
    assert paths == [
        [
            "train.step:TrainStep.run",
            "data_parallel.dense_reducer:DenseReducer.finish",
            "comm.allreduce.native:Native.__call__",
            "comm.communicator:Communicator.allreduce",
            "comm.mpi_transport:MpiTransport.allreduce",
        ]
    ]
    assert len(paths[0]) <= MOST_FROM_STEP_TO_MPI  # a call each, MPI's the last


def test_from_the_command_to_the_first_step_there_are_at_most_nine_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths: list[list[str]] = []
    monkeypatch.setattr(TrainStep, "run", noting_calls(TrainStep.run, paths))
    folder = tmp_path / "run"
    argv = ["dist-ml", "train", *DATA, "epochs=1", f"folder={folder}"]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        with pytest.raises(SystemExit) as ended:
            main.entry()
    finally:
        logs.stop()
    assert ended.value.code == 0
    assert (folder / "summary.json").exists()
    first, *others = paths
    assert first[0] == "cli.main:entry"
    assert len(first) <= MOST_FROM_COMMAND_TO_STEP, "\n".join(first)  # a call each, the step's last
    assert others.count(first) == len(others)  # every step is reached in the same way


def noting_calls(run: Callable[..., Any], paths: list[list[str]]) -> Callable[..., Any]:
    def noting(*args: Any) -> Any:
        paths.append(standing(sys._getframe(1)))
        return run(*args)

    return noting


def test_the_path_in_the_architecture_is_the_real_one() -> None:
    """Names in the drawing, in their order."""
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    start = text.index("## From the command to MPI")
    drawing = text[start : text.index("\n\n", text.index("entry", start))]
    (path,) = paths_to_mpi("allreduce=native")
    names = [name.split(":")[1].removesuffix(".__call__") for name in path]
    names[1], names[2] = "reducer.finish", "allreduce"  # of any reducer, and any allreduce
    places = [drawing.index(f"{name} ->") for name in names]
    assert places == sorted(places)
