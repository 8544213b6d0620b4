"""What torch.profiler sees of this rank, as slices of the timeline."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from dist_ml.trace.clock import Clock
from dist_ml.trace.slices import TORCH, Slice

_SHOWN = ("cpu_op", "user_annotation")  # categories


class TorchOperators:
    """Torch's operators on all threads of this process, from `start` to `stop`."""

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._ahead = 0  # of the clock that counts from 1970, to the monotonic one

    def start(self) -> None:
        self._ahead = time.time_ns() - time.monotonic_ns()
        self._profile.start()

    def stop(self) -> None:
        self._profile.stop()

    def slices(self, clock: Clock) -> list[Slice]:
        """After `stop`: a lane a thread. They are read from the file that torch exports."""
        with tempfile.TemporaryDirectory(prefix="dist_ml-trace-") as folder:
            file = Path(folder) / "torch.json"
            self._profile.export_chrome_trace(str(file))
            content = json.loads(file.read_text())
        base = content["baseTimeNanoseconds"] - self._ahead
        return list(_slices(content["traceEvents"], base, clock))


def _slices(events: list[dict[str, Any]], base: int, clock: Clock) -> Iterator[Slice]:
    """Times are microseconds after `base`, rounded to float64: an operator ends with the one that
    called it at the latest.
    """
    lanes: dict[Any, int] = {}
    callers: dict[int, list[int]] = {}  # of a lane, when they end
    shown = [each for each in events if each["ph"] == "X" and each.get("cat") in _SHOWN]
    for each in sorted(shown, key=lambda each: (each["ts"], -each["dur"])):
        lane = lanes.setdefault(each["tid"], len(lanes))
        start = clock.reference(base + round(1000 * each["ts"]))
        stop = clock.reference(base + round(1000 * (each["ts"] + each["dur"])))
        open_calls = callers.setdefault(lane, [])
        while open_calls and open_calls[-1] <= start:
            open_calls.pop()
        stop = min([stop, *open_calls[-1:]])
        open_calls.append(stop)
        yield Slice(TORCH, each["name"], start, stop, {}, lane)
