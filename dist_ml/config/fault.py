"""The configuration of what is done about faults of machines and ranks."""

import math
from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class FaultConfig:
    """What follows a death (docs/shrink.md), how wrong results are found
    (docs/reproducibility.md), and after how long a step, or a host that does not answer, ends the
    job (docs/failures.md).
    """

    # when a rank dies: none: the job ends; shrink: the others go on without it
    recover: Literal["none", "shrink"] = "none"
    rerun: bool = False  # compute a step again whose loss or gradient norm jumps
    rerun_window: int = 64  # the steps that a jump is held against
    # a jump: more than the median by so many standard deviations, as the median deviation has them
    rerun_deviations: float = 10.0
    watchdog: float = 10.0  # a step's limit, in medians of the steps so far; 0: none
    watchdog_seconds: float = 60.0  # but at least so long
    unreachable_seconds: float = 8.0  # after so long without another host the job ends; 0: never

    def __post_init__(self) -> None:
        if self.rerun_window < 2:
            raise ConfigError(f"rerun_window={self.rerun_window} must be at least 2 steps")
        if not self.rerun_deviations > 0:
            raise ConfigError(f"rerun_deviations={self.rerun_deviations} must be above 0")
        if self.watchdog != 0 and not 1 < self.watchdog < math.inf:
            raise ConfigError(
                f"watchdog={self.watchdog:g} must be above 1, in medians of a step; or 0 for no "
                "limit"
            )
        if not 0 < self.watchdog_seconds < math.inf:
            raise ConfigError(
                f"watchdog_seconds={self.watchdog_seconds:g} must be above 0 and finite; "
                "watchdog=0 sets no limit"
            )
        if not (self.unreachable_seconds == 0 or 2 <= self.unreachable_seconds < math.inf):
            raise ConfigError(
                f"unreachable_seconds={self.unreachable_seconds:g} must be 2 or more, because "
                "hosts ask each other once a second; or 0 for no limit"
            )
