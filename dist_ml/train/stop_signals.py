"""Signals that tell a run to stop: noticed when they come, heeded at the next step's border."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

# The exit status of a run that was stopped and saved, to be started again (EX_TEMPFAIL).
STOPPED = 75

_HEEDED = (signal.SIGUSR1, signal.SIGTERM)
# After SIGTERM a rank that reaches no border any more (one that waits for a dead rank) ends itself:
# whoever sent it may count on that.
_LONGEST_SECONDS = 30.0


class StopSignals:
    """Within its block SIGUSR1 and SIGTERM are kept in mind; a second one of a kind does what it
    did before. With `enabled` false nothing is done; only the main thread can do it.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self.name: str | None = None  # of the first that came
        self._came = 0.0
        self._before: dict[signal.Signals, object] = {}
        self._last_resort: threading.Timer | None = None

    def __enter__(self) -> "StopSignals":
        if self._enabled and threading.current_thread() is threading.main_thread():
            for number in _HEEDED:
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.at_border()
        for number in list(self._before):
            self._restore(number)

    def told(self) -> bool:
        """Did one come to this rank?"""
        return self.name is not None

    def at_border(self) -> float:
        """The step's border is reached; seconds since the signal, 0 where this rank had none."""
        if self._last_resort is not None:
            self._last_resort.cancel()
        return time.monotonic() - self._came if self.told() else 0.0

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        received = signal.Signals(number)
        self._restore(received)
        if self.name is None:
            self.name, self._came = received.name, time.monotonic()
        if received == signal.SIGTERM:
            self._last_resort = threading.Timer(_LONGEST_SECONDS, os._exit, [128 + number])
            self._last_resort.daemon = True
            self._last_resort.start()

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._before.pop(number))  # type: ignore[arg-type]
