"""Is a value far above those before it? By medians, which a few wild values don't move."""

import math
import statistics
from collections import deque

_NORMAL = 1.4826  # the standard deviation over the median deviation, of normal values
_LEAST = 1e-3  # of the median: a deviation below it, of values that hardly change, tells nothing


class JumpDetector:
    """Holds each value against the `window` ones before it; those of less than half a window say
    nothing, but for values that are not finite.
    """

    def __init__(self, window: int, deviations: float) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._fewest, self._deviations = (window + 1) // 2, deviations

    def jumps(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        if len(self._values) < self._fewest:
            return False
        median = statistics.median(self._values)
        deviation = statistics.median(abs(each - median) for each in self._values)
        scale = max(_NORMAL * deviation, _LEAST * abs(median))
        return value - median > self._deviations * scale

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._values.append(value)
