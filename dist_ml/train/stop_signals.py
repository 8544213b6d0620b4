"""Signals that tell a run to stop: noticed when they come, heeded at the next step's border."""

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from dist_ml.launch.lead import LEAST_SECONDS
from dist_ml.launch.process import handled, raise_exit
from dist_ml.launch.signal_pipe import signal_pipe

log = logging.getLogger(__name__)

# The exit status of a run that was stopped and saved, to be started again (EX_TEMPFAIL).
STOPPED = 75

_HEEDED = (signal.SIGUSR1, signal.SIGTERM)
# A save that goes on for longer after a SIGTERM hangs: what `AsyncSaver` waits for one, too.
_LONGEST_SAVE_SECONDS = 600.0
_LOOK_SECONDS = 0.2  # how often the thread looks whether the time is up, once SIGTERM has come
_JOIN_SECONDS = 1.0


class StopSignals:
    """Within its block, which begins before MPI does, SIGUSR1 and SIGTERM are kept in mind. Further
    ones change nothing: a launcher and Slurm often send the same one twice. Only the main thread
    can arrange it; where the block is not entered, nothing is noticed.

    After SIGTERM a rank that reaches no border any more (one that waits for a dead rank) ends
    itself: whoever sent it may count on that. Python's handlers wait for the end of a blocking MPI
    call, so a thread reads the signals from a pipe that the interpreter's C code fills.
    """

    def __init__(self) -> None:
        self.name: str | None = None  # of the first that came
        self._came = 0.0
        self._saves: bool | None = None  # unknown before `begin`
        self._is_logged = False
        self._seconds = LEAST_SECONDS
        self._end_asked: float | None = None  # when SIGTERM came
        self._safe_until = 0.0  # no end before then, for the sake of a save
        self._open: contextlib.ExitStack | None = None
        self._calls: dict[int, Callable[[], object]] = {}  # by signal

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._sigterm_before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
            if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
                # Not to die of it after the block: MPI's end comes at the interpreter's exit.
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            self._open = contextlib.ExitStack()
            self._open.enter_context(handled(self._on_signal, *_HEEDED))
            self._open.enter_context(self._listening())
            os.register_at_fork(after_in_child=self._leave_child)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def begin(self, saves: bool, alone: bool, seconds: float) -> None:
        """The run is known. In one that `saves`, steps ask `told`, and `seconds` may pass from a
        SIGTERM to the next border. In another, SIGUSR1 does nothing, and SIGTERM ends the process
        at once, or raises where this rank is `alone`, as it does outside the block.
        """
        self._saves, self._seconds = saves, seconds
        if self._open is not None and not saves:
            before = self._sigterm_before
            is_free = before is signal.SIG_DFL
            signal.signal(signal.SIGTERM, raise_exit if alone and is_free else before)
            if self._end_asked is not None:
                signal.raise_signal(signal.SIGTERM)

    def on(self, number: signal.Signals, call: Callable[[], object]) -> None:
        """Have `call()` made, on a thread, when another signal comes, until the block ends."""
        if self._open is not None:
            self._calls[number] = call
            self._open.enter_context(handled(lambda *_: None, number))

    def told(self) -> bool:
        """Is this rank to stop, and its run saved?"""
        return self.name is not None and self._saves is True

    def log_ignored(self) -> None:
        """A line in the log, once, for a signal that came to a run that isn't saved."""
        if self.name is not None and not self._saves and not self._is_logged:
            self._is_logged = True
            log.warning(
                "%s is ignored: this run isn't saved; with resume=auto or checkpoint.every it "
                "would save, and stop",
                self.name,
            )

    def waited_seconds(self) -> float:
        """Seconds since the first signal, 0 where this rank had none."""
        return 0.0 if self.name is None else time.monotonic() - self._came

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Within the block, which begins at a border, SIGTERM does not end this rank unless the
        save hangs; after it the time to the next border counts anew.
        """
        self._safe_until = time.monotonic() + max(_LONGEST_SAVE_SECONDS, self._seconds)
        try:
            yield
        finally:
            self._safe_until = time.monotonic() + self._seconds

    def _on_signal(self, number: int, _frame: FrameType | None = None) -> None:
        """Called by the thread, and by Python in the main one: there it is known when `os.kill` to
        this process returns.
        """
        if self.name is None:
            self._came, self.name = time.monotonic(), signal.Signals(number).name
        if number == signal.SIGTERM and self._end_asked is None:
            self._end_asked = time.monotonic()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        with signal_pipe() as reader:
            arguments = [reader]
            thread = threading.Thread(
                target=self._listen, args=arguments, name="stop-signals", daemon=True
            )
            thread.start()
            yield
        thread.join(_JOIN_SECONDS)
        os.close(reader)

    def _listen(self, reader: int) -> None:
        """Until the pipe is closed: note what comes, and end the process when its time is up."""
        while not self._is_overdue():
            timeout = None if self._end_asked is None else _LOOK_SECONDS
            if select.select([reader], [], [], timeout)[0]:
                numbers = os.read(reader, 64)
                if not numbers:
                    return
                for number in _HEEDED:
                    if number in numbers:
                        self._on_signal(number)
                for other in self._calls.keys() & numbers:
                    self._calls[other]()
        os._exit(128 + signal.SIGTERM)

    def _is_overdue(self) -> bool:
        if self._end_asked is None or self._saves is False:
            return False
        return time.monotonic() > max(self._end_asked + self._seconds, self._safe_until)

    def _leave_child(self) -> None:
        """In a forked child, which has the pipe, too: what ends the child must not end the run."""
        if self._open is not None:
            signal.set_wakeup_fd(-1)
            for number in (*_HEEDED, *self._calls):
                signal.signal(number, signal.SIG_DFL)
