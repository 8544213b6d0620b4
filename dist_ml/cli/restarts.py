"""`dist-ml launch --restarts N … train …`: where a rank or a node fails, the job is started again,
at most N times, in its run folder, and goes on from its last checkpoint.
"""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_ml.cli import arguments, terminal, train
from dist_ml.config.train import AUTO, TrainConfig
from dist_ml.errors import CommunicationError, ConfigError, NonFiniteError
from dist_ml.experiment.axes import quoted
from dist_ml.launch.first_death import fatal_signal
from dist_ml.launch.job import TIMED_OUT
from dist_ml.launch.process import handled
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.stop_signals import STOPPED

# What another start would not end otherwise, and what was asked for: MPICH's status is the signal.
_FINAL = {0, ConfigError.exit_status, NonFiniteError.exit_status, STOPPED, TIMED_OUT}
_FINAL |= {
    base + number for base in (0, 128) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
}

# Runs `dist-ml train` with these words, so many seconds after the first start: the exit status.
Start = Callable[[Sequence[str], float], int]


def run(words: Sequence[str], restarts: int, start: Start) -> int:
    """The job of `dist-ml train` with these `words`, started again after each failure: the last
    exit status. `ConfigError` where its configuration is refused, or saves no checkpoints.
    """
    config = _configuration(words, restarts)
    first, again = _in_one_folder(words, config)
    folder = RunFolder(Path(config.place)).checkpoints
    told: list[int] = []
    began, saved = time.monotonic(), _newest(folder)
    with handled(lambda number, _: told.append(number), signal.SIGUSR1):
        status, left = start(first, 0.0), restarts
        while is_failure(status) and not told:
            before, saved = saved, _newest(folder)
            ended = f"the job ended {in_words(status)}"
            if before == saved:
                ended += ", without a newer checkpoint than it began with"
            where = f"{config.place} from {'the beginning' if saved is None else f'step {saved}'}"
            if not left:
                terminal.complain(
                    f"{ended}, and no restart is left of {restarts}; resume=auto goes on in {where}"
                )
                break
            left -= 1
            terminal.complain(f"restart, {left} left: {ended}; it goes on in {where}")
            status = start(again, time.monotonic() - began)
    return status


def is_failure(status: int) -> bool:
    """Did a rank or a node fail, so that another start may end otherwise?"""
    return status not in _FINAL


def in_words(status: int) -> str:
    """How a job ended that failed."""
    if status == CommunicationError.exit_status:
        why = "a rank was lost or did not come"
    elif (number := fatal_signal(status)) is not None:
        why = f"{signal.strsignal(number)}"
    else:
        why = "an error on a rank"
    return f"with status {status} ({why})"


def _configuration(words: Sequence[str], restarts: int) -> TrainConfig:
    """Of `dist-ml train`, composed and checked before anything starts."""
    request = arguments.parse(words, train.PROGRAM, config_name="train")
    config = train.configuration(request)
    if not config.checkpoint.every:
        raise ConfigError(
            f"--restarts={restarts} needs checkpoints to go on from; add checkpoint.every=<steps>"
        )
    return config


def _in_one_folder(words: Sequence[str], config: TrainConfig) -> tuple[list[str], list[str]]:
    """Words of the first start and of the others, with the same folder: the usual one has the time
    in its name. The first begins a run, unless `resume` says otherwise.
    """
    if config.resume is not None and config.resume != AUTO:
        return [*words], [*words]
    first = [*words, f"folder={quoted(config.folder)}"]
    return first, [*first, f"resume={AUTO}"]


def _newest(folder: Path) -> int | None:
    """The step of the newest committed checkpoint; None without one."""
    if not folder.is_dir():
        return None
    from dist_ml.checkpoint.folder import committed  # it needs torch, and most jobs don't fail

    found = committed(folder)
    return int(found[0].stem.removeprefix("step-")) if found else None
