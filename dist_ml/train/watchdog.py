"""Ends a job whose step takes far longer than steps did: some rank has not come, and nobody will
get out of the call in which the others wait for it.

    limit       `watchdog` x the median step, at least `watchdog_seconds`
    1 x limit   the first rank to reach it makes `log/hang`, has all ranks of its node write their
                flight records, judges them and ends the job
    from 1/2    the others look for that file, write theirs and wait for the end
"""

import threading
import time
from collections import deque
from statistics import median
from types import TracebackType

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import LIMIT_SECONDS
from dist_ml.config.fault import FaultConfig
from dist_ml.flight import record_file
from dist_ml.flight.recorder import ENDED, WAITED
from dist_ml.train import hang

_STEPS = 101  # that the median is taken of
_GRACE_SECONDS = 3.0  # for the records of ranks that are alive
_END_SECONDS = 4.0  # then the job has ended


class StepClock:
    """How long the present step lasts, and how long it may; the main thread's, read by another."""

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._seconds: deque[float] = deque(maxlen=_STEPS)
        self._moment = time.monotonic()  # of the last beginning or end
        self.in_step = False

    def begin(self) -> None:
        self._moment, self.in_step = time.monotonic(), True

    def end(self) -> None:
        now = time.monotonic()
        self._seconds.append(now - self._moment)
        self._moment, self.in_step = now, False

    def rest(self) -> None:
        """No step goes on, and what went on was none."""
        self._moment, self.in_step = time.monotonic(), False

    def skip(self, seconds: float) -> None:
        """They didn't count: this process was stopped, perhaps with the whole job."""
        self._moment += seconds

    def lasts(self) -> float:
        """Seconds since the step began, or since the last one ended."""
        return time.monotonic() - self._moment

    def limit(self) -> float:
        """Of a step. Before the first has ended, as if they took `watchdog_seconds`; beyond steps
        (an evaluation, a checkpoint) that of any wait.
        """
        if not self.in_step:
            return LIMIT_SECONDS
        least = self._config.watchdog_seconds
        usual = median(seconds) if (seconds := list(self._seconds)) else least
        return max(self._config.watchdog * usual, least)


class Watchdog:
    """A daemon thread within the block, where there are several ranks and a limit. The main thread
    says when steps `begin` and `end`, and when none goes on: `rest`.
    """

    def __init__(self, config: FaultConfig, world: Communicator) -> None:
        self._world, self._clock = world, StepClock(config)
        self._enabled = config.watchdog > 0 and world.size > 1
        self._over = threading.Event()
        self._tick = min(1.0, config.watchdog_seconds / 10)

    def __enter__(self) -> "Watchdog":
        if self._enabled:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def begin(self, step: int) -> None:
        """The step begins, by its number."""
        self._world.recorder.step = step
        self._clock.begin()

    def end(self) -> None:
        self._clock.end()

    def rest(self) -> None:
        self._world.recorder.step = None
        self._clock.rest()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._tick):
            now = time.monotonic()
            if (late := now - before - self._tick) > max(5.0, self._tick):
                self._clock.skip(late)
            before = now
            lasts, limit = self._clock.lasts(), self._clock.limit()
            if lasts > limit and (self._clock.in_step or self._waits_for(limit)):
                self._end_job(lasts, limit)
                return
            if lasts > limit / 2 and self._is_ending():
                self._follow(lasts)
                return

    def _waits_for(self, seconds: float) -> bool:
        """Has the rank been in the same call for so long?"""
        latest = time.monotonic_ns() - int(seconds * 1e9)
        records = self._world.recorder.records()
        return any(0 < record[WAITED] < latest and not record[ENDED] for record in records)

    def _end_job(self, lasts: float, limit: float) -> None:
        words = self._words(lasts, limit)
        if not self._mark():
            self._follow(lasts)
            return
        finding = hang.write_all(self._world, words, _GRACE_SECONDS, other_nodes=True)
        if not self._over.is_set():
            told = "" if finding is None else f": {finding.words}"
            folder = self._world.recorder.folder
            more = "" if folder is None else f" (dist-ml doctor hang {folder.parent})"
            self._world.transport.end_stuck(f"{words}{told}{more}")

    def _follow(self, lasts: float) -> None:
        """Another rank ends the job; if it can't, this one does."""
        hang.write(self._world, f"another rank's step lasted too long; this one's {lasts:.1f} s")
        if not self._over.wait(_GRACE_SECONDS + _END_SECONDS):
            self._world.transport.end_stuck("the job hangs, and the rank that ends it is gone")

    def _words(self, lasts: float, limit: float) -> str:
        step = self._world.recorder.step
        what = "what follows a step" if step is None else f"step {step}"
        return f"{what} has lasted {lasts:.1f} s, and {limit:.1f} s are the limit"

    def _mark(self) -> bool:
        """Is this the first rank? True as well where there is no folder to tell by."""
        folder = self._world.recorder.folder
        try:
            if folder is not None:
                (folder / record_file.HANGS).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _is_ending(self) -> bool:
        folder = self._world.recorder.folder
        return folder is not None and (folder / record_file.HANGS).exists()
