"""`dist-ml bench checkpoint_run`: what saving in the background costs a run's steps, and what going
on from a checkpoint costs over a fresh start.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dist_ml.bench.bench import Bench
from dist_ml.bench.checkpoint_part import drop, new_folder
from dist_ml.bench.configured import from_arguments, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, milliseconds
from dist_ml.bench.worlds import Worlds
from dist_ml.checkpoint.reader import newest
from dist_ml.comm.agreement import from_root
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import alternate, ratio, seconds_per_call
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.checkpoints import Checkpoints, go_on
from dist_ml.train.interval import Interval
from dist_ml.train.progress import Progress

STEP, SAVING = "step", "step, saving in the background"
FRESH, READING, RESUMED = "fresh start", "reading alone", "resumed"
_BUFFER_BYTES = 1 << 20

Seconds: TypeAlias = dict[str, list[float]]


@dataclass(frozen=True)
class CheckpointRunBench:
    """What to train and save where."""

    train: TrainConfig
    folder: str  # on the disk that is measured; its part that this makes is removed
    mpi: str
    ranks: tuple[int, ...]
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch_size: int
    steps: int  # for each of which one checkpoint is saved
    rounds: int  # of alternation

    def __post_init__(self) -> None:
        if self.steps < 2 or min(self.rounds, *self.ranks) < 1:
            raise ConfigError(
                f"steps={self.steps} must be 2 or more, rounds={self.rounds} and "
                f"ranks={list(self.ranks)} 1 or more"
            )


def run(config: CheckpointRunBench, worlds: Worlds) -> Result:
    train = with_widths(config.train, config.widths, config.batch_size)
    arguments = {
        "train": to_arguments(train),
        "folder": config.folder,
        "steps": config.steps,
        "rounds": config.rounds,
    }
    records: list[Record] = []
    checks: list[Check] = []
    for ranks in config.ranks:
        seconds = worlds.measure(
            "checkpoint run", arguments, ranks=ranks, mpi=config.mpi,
            environment={"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        records += [
            {"ranks": ranks, "what": what, **milliseconds(values)}
            for what, values in seconds.items()
        ]
        checks += run_checks(seconds, ranks)
    return Result("checkpoint_run", records, checks)


def run_checks(seconds: Mapping[str, Sequence[float]], ranks: int) -> list[Check]:
    """At most 5 % on a step, all of a save in it; at most 30 % on a fresh start and one reading of
    the bytes.
    """
    of_ranks = f"{ranks} rank{'s' * (ranks > 1)}"
    apart = [a + b for a, b in zip(seconds[FRESH], seconds[READING], strict=True)]
    return [
        Check(f"step with saving in the background over a step, {of_ranks}",
              ratio(seconds[SAVING], seconds[STEP]).median, 1.05, "lower"),
        Check(f"resuming over a fresh start and reading, {of_ranks}",
              ratio(seconds[RESUMED], apart).median, 1.3, "lower"),
    ]  # fmt: skip


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> Seconds:
    """Seconds of the slowest rank in rounds: of a step, and from nothing to the end of a first
    step, the files not in memory.
    """
    root = from_root(comm, lambda: new_folder(Path(arguments["folder"])))
    try:
        config = from_arguments(arguments["train"])
        mesh, rounds = build_mesh(config, comm), arguments["rounds"]
        steps = _steps(config, mesh, root, arguments["steps"], rounds)
        return {**steps, **alternate(_Starts(config, mesh, root).candidates(), rounds)}
    finally:
        comm.barrier()
        if comm.rank == 0:
            shutil.rmtree(root)


def _steps(config: TrainConfig, mesh: Mesh, root: Path, num_steps: int, rounds: int) -> Seconds:
    """A save begins after the first of so many steps, and has ended when the time is taken."""
    trainer = build_trainer(config, mesh)
    progress, interval = Progress(), Interval(trainer)
    saved = CheckpointConfig(num_steps, keep_last=1, asynchronous=True)
    checkpoints = Checkpoints(saved, trainer, root, to_arguments(config))

    def plain() -> None:
        for step in trainer.next_steps(num_steps):
            interval.add(step)

    def saving() -> None:
        for step in trainer.next_steps(num_steps):
            interval.add(step)
            checkpoints.after_step(progress, interval)
        checkpoints.close()

    for _ in trainer.next_steps(num_steps - 1):  # the next one's number is a checkpoint's
        pass
    candidates = {
        name: lambda call=call: seconds_per_call(mesh.world, call) / num_steps
        for name, call in {STEP: plain, SAVING: saving}.items()
    }
    alternate(candidates, 1)
    seconds = alternate(candidates, rounds)
    trainer.close()
    return seconds


class _Starts:
    """Ways to a run's first step, and reading its checkpoint, which `_steps` has left."""

    def __init__(self, config: TrainConfig, mesh: Mesh, root: Path) -> None:
        self._config, self._mesh, self._root = config, mesh, root
        self._mapping = to_arguments(config)

    def candidates(self) -> dict[str, Any]:
        calls = {FRESH: self._fresh, READING: self._read, RESUMED: self._resume}
        return {name: lambda call=call: self._cold(call) for name, call in calls.items()}

    def _cold(self, call: Any) -> float:
        if self._mesh.world.rank == 0:
            for path in self._root.rglob("*"):
                if path.is_file():
                    drop(path)
        return seconds_per_call(self._mesh.world, call)

    def _fresh(self) -> None:
        trainer = build_trainer(self._config, self._mesh)
        trainer.step(0, 0)
        trainer.close()

    def _read(self) -> None:
        """Every byte once, on each rank, as its replica needs them."""
        buffer = bytearray(_BUFFER_BYTES)
        for file in sorted(self._root.rglob("*.safetensors")):
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass

    def _resume(self) -> None:
        trainer = build_trainer(self._config, self._mesh)
        found = newest(self._root, self._mesh.world)
        assert found is not None
        go_on(trainer, found, self._mapping, Progress(), Interval(trainer))
        for _ in trainer.next_steps(1):
            pass
        trainer.close()


BENCH = Bench(
    "steps beside saving in the background, and resuming against a fresh start",
    CheckpointRunBench,
    run,
    {"checkpoint run": measure},
    ranks=1,
)
