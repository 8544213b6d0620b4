"""What one rank of a training run may do wrong, and the exchanges that it may do it in:

    python -m dist_ml.bench.faults FAULT EXCHANGE FOLDER ARGUMENTS…

is one rank of `dist-ml train ARGUMENTS…` into `FOLDER/run`. After the third step the last rank
leaves the time in `FOLDER/failed-at`, and does what FAULT says.
"""

import itertools
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dist_ml.comm.allreduce.native import Native
from dist_ml.comm.allreduce.ring import Ring
from dist_ml.comm.allreduce.shared_memory import SharedMemory
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.sparse.base import SparseSum
from dist_ml.comm.sparse.oktopk import OkTopk
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.train.step import Step
from dist_ml.train.trainer import Trainer

FAILED_AT, RUN = "failed-at", "run"  # in the folder
_AFTER_STEPS = 3
_LONG_SECONDS = 3600.0
_MEET_SECONDS = 0.5  # until the others wait for the rank that raises


class Call(NamedTuple):
    """A method that communicates, and what stands in for it where it is left out."""

    owner: type
    method: str
    instead: Callable[..., Any] = lambda *_, **__: None


class Exchange(NamedTuple):
    """`overrides` of the run; the call that `leave_out` leaves out once; `waits`: a pattern of what
    the others then wait in.
    """

    overrides: tuple[str, ...]
    left_out: Call
    waits: str


EXCHANGES: dict[str, Exchange] = {
    "dense": Exchange(
        ("allreduce=native", "allreduce.overlap=none"),
        Call(Native, "__call__"),
        r"allreduce sum float32",
    ),
    "overlapped": Exchange(
        ("allreduce=ring", "allreduce.overlap=thread", "allreduce.bucket_bytes=4096"),
        Call(Ring, "start", lambda *_, **__: Request()),
        r"allreduce by ring sum float32",
    ),
    "shared_memory": Exchange(
        ("allreduce=shared_memory", "allreduce.overlap=none"),
        Call(SharedMemory, "__call__"),
        r"allreduce by shared_memory sum float32",
    ),
    "sparse": Exchange(
        ("sparse=topk", "sparse.allreduce=oktopk", "sparse.overlap=2"),
        Call(OkTopk, "reduce", lambda _, own, k: SparseSum(own)),  # noqa: ARG005
        r"(allreduce|alltoall|allgather) ?.* (int32|int64|float32)\[|(receive|send) (from|to) rank",
    ),
    "pipeline": Exchange(
        ("mesh.pipeline={ranks}", "pipeline=one_f_one_b"),
        Call(StageMessages, "give"),
        r"(receive|send) (from|to) rank \d+ float32",
    ),
}


def leave_out(world: Communicator, call: Call) -> None:  # noqa: ARG001 - as all faults
    """The next time that the call is due on this rank, it is not made."""
    made = getattr(call.owner, call.method)

    def skipped(*arguments: Any, **named: Any) -> Any:
        setattr(call.owner, call.method, made)
        return call.instead(*arguments, **named)

    setattr(call.owner, call.method, skipped)


def _raise(*_: Any) -> None:
    time.sleep(_MEET_SECONDS)
    raise ValueError("a bug")


FAULTS: dict[str, Callable[[Communicator, Call], object]] = {
    "raise": _raise,
    "leave_out": leave_out,
    "call_another": lambda world, _: world.barrier(),
    "sleep": lambda *_: time.sleep(_LONG_SECONDS),
    "stop": lambda *_: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
}


def main(fault: str, exchange: str, folder: str, *arguments: str) -> None:
    """Train, and go wrong."""
    epoch, steps = Trainer.epoch, itertools.count(1)

    def failing(trainer: Trainer, *places: Any, **named: Any) -> Iterator[Step]:
        world = trainer.mesh.world
        for step in epoch(trainer, *places, **named):
            if next(steps) == _AFTER_STEPS and world.rank == world.size - 1:
                Path(folder, FAILED_AT).write_text(str(time.time()))
                FAULTS[fault](world, EXCHANGES[exchange].left_out)
            yield step

    Trainer.epoch = failing  # type: ignore[method-assign, assignment]
    sys.argv = ["dist_ml", "train", f"folder={Path(folder, RUN)}", *arguments]
    runpy.run_module("dist_ml", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
