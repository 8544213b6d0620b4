"""Kills of a training run's processes by SIGKILL, at random times and within its saves, and what a
run that was killed has left.
"""

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_ml.checkpoint.folder import COMMIT, committed
from dist_ml.checkpoint.reader import newest
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import DistMLError
from dist_ml.launch import process
from dist_ml.train import metrics
from dist_ml.train.run_folder import RunFolder

Victim = Literal["a rank", "all ranks", "the launcher"]
VICTIMS: tuple[Victim, ...] = ("a rank", "all ranks", "the launcher")
_LOOK_SECONDS = 0.01
_LOOK_AT_SAVES_SECONDS = 0.0005  # one of few bytes is over in some milliseconds
_LONGEST_DELAY_SECONDS = 0.02  # after a save's beginning


@dataclass(frozen=True)
class Kill:
    """Whom to kill, and when."""

    victim: Victim
    rank: int  # where it is one rank
    wait_seconds: float  # once the run trains
    delay_seconds: float | None  # then, after a save has begun; None: at once


@dataclass(frozen=True)
class Death:
    """What a kill has left."""

    victim: Victim
    is_within_save: bool
    step: int | None  # of the checkpoint to go on from
    problem: str  # with it, in words; empty where it is sound


def plan(number: int, ranks: int, longest_wait_seconds: float, seed: str) -> list[Kill]:
    """So many kills, every other one aimed into a save; the same ones for the same seed."""
    chance = random.Random(seed)
    return [
        Kill(
            chance.choice(VICTIMS),
            chance.randrange(ranks),
            chance.uniform(0.0, longest_wait_seconds),
            chance.uniform(0.0, _LONGEST_DELAY_SECONDS) if index % 2 else None,
        )
        for index in range(number)
    ]


class Killer:
    """A thread that makes one kill within the block, in the job that trains in `folder` and whose
    processes have `mark` (NAME=value) in their environment; `struck` tells whether it came to it.
    """

    def __init__(self, kill: Kill, folder: Path, mark: str) -> None:
        self._kill, self._folder, self._mark = kill, RunFolder(folder), mark
        self._starts = num_starts(folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self.struck = False

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        """Once the run trains, and has a checkpoint to go on from."""
        if not self._comes(self._trains, _LOOK_SECONDS):
            return
        ranks = process.ranks_of(self._mark)
        victims = {
            "a rank": {pid for rank, pid in ranks.items() if rank == self._kill.rank},
            "all ranks": {*ranks.values()},
            "the launcher": {*process.marked(self._mark)} - {*ranks.values()},
        }[self._kill.victim]
        self._over.wait(self._kill.wait_seconds)
        if self._kill.delay_seconds is not None:
            if not self._comes(lambda: is_within_save(self._folder), _LOOK_AT_SAVES_SECONDS):
                return
            time.sleep(self._kill.delay_seconds)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.struck = True

    def _trains(self) -> bool:
        has_checkpoint = bool(committed(self._folder.checkpoints))
        return has_checkpoint and num_starts(self._folder.path) > self._starts

    def _comes(self, condition: Callable[[], bool], look_seconds: float) -> bool:
        """Wait for it, until the block ends."""
        while not self._over.is_set():
            if condition():
                return True
            self._over.wait(look_seconds)
        return False


def num_starts(folder: Path) -> int:
    """How often training has begun there, in however many processes."""
    return _log(folder).count(" parameters on ")


def steps_gone_on_from(folder: Path) -> list[int]:
    """The step that each life but the first went on from."""
    return [int(step) for step in re.findall(r"goes on from step (\d+) of", _log(folder))]


def is_within_save(folder: RunFolder) -> bool:
    """Is there a save that has begun, and was not committed?"""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.checkpoints.glob("step-*"):
            if path.suffix == ".tmp" or not (path.suffix or (path / COMMIT).exists()):
                return True
    return False


def death_of(folder: Path, kill: Kill) -> Death:
    """What `kill` has left in the run's folder; every byte of its newest checkpoint is read."""
    is_saving = is_within_save(RunFolder(folder))
    try:
        found = newest(RunFolder(folder).checkpoints, Communicator(Loopback()))
    except DistMLError as error:
        return Death(kill.victim, is_saving, None, str(error))
    if found is None:
        return Death(kill.victim, is_saving, None, "there is no committed checkpoint")
    damaged = "; ".join(f"{path.name}: {words}" for path, words in found.passed_over)
    return Death(kill.victim, is_saving, found.step, damaged)


def unlike_losses(a: Path, b: Path) -> int:
    """Steps whose loss has other bits in the two runs, or is missing or doubled in one of them."""
    logged = [[line for line in metrics.read(RunFolder(run).metrics) if "loss" in line]
              for run in (a, b)]  # fmt: skip
    losses = [{line["step"]: repr(line["loss"]) for line in lines} for lines in logged]
    doubled = sum(len(lines) - len(of) for lines, of in zip(logged, losses, strict=True))
    one, other = losses
    return doubled + sum(one.get(step) != other.get(step) for step in one.keys() | other.keys())


def _log(folder: Path) -> str:
    """Of the first rank; empty where there is none yet."""
    try:
        return (RunFolder(folder).log / "rank-0000.log").read_text(errors="replace")
    except FileNotFoundError:
        return ""
