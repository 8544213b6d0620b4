"""The configuration of what is done about faults of machines."""

from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class FaultConfig:
    """What follows a death (docs/shrink.md), and how wrong results are found
    (docs/reproducibility.md).
    """

    # when a rank dies: none: the job ends; shrink: the others go on without it
    recover: Literal["none", "shrink"] = "none"
    rerun: bool = False  # compute a step again whose loss or gradient norm jumps
    rerun_window: int = 64  # the steps that a jump is held against
    # a jump: more than the median by so many standard deviations, as the median deviation has them
    rerun_deviations: float = 10.0

    def __post_init__(self) -> None:
        if self.rerun_window < 2:
            raise ConfigError(f"rerun_window={self.rerun_window} must be at least 2 steps")
        if not self.rerun_deviations > 0:
            raise ConfigError(f"rerun_deviations={self.rerun_deviations} must be above 0")
