"""The configuration of dense gradient exchange."""

from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class AllreduceConfig:
    """How gradients are summed over the data axis, and when."""

    # native, ring, rabenseifner, shared_memory, hierarchical; auto: what a calibration of this
    # machine, kept in the user's cache, finds fastest
    name: str = "native"
    # what is sent between nodes; sums are always made in fp32 (or fp64)
    wire: Literal["fp32", "bf16", "fp16"] = "fp32"
    # send while the backward pass runs; auto: thread between nodes
    overlap: Literal["auto", "none", "thread", "poll"] = "auto"
    # of gradients sent at a time; null: a sixteenth of the model, at least 1 MiB
    bucket_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.bucket_bytes is not None and self.bucket_bytes < 4:
            raise ConfigError(
                f"bucket_bytes={self.bucket_bytes} must hold a gradient: at least 4, or null to "
                "have it chosen"
            )


@dataclass(frozen=True)
class DataParallelConfig:
    """What the ranks of the data axis share: gradients every step, a sharded optimizer, or
    parameters now and then.
    """

    # dense: gradients, every step; zero1, zero2: and a sharded optimizer, sharded gradients;
    # daso, periodic: parameters now and then
    name: str = "dense"
    # daso, periodic: steps between synchronisations (daso: between nodes; halved on a plateau)
    period: int = 4
    warmup_steps: int = 0  # daso: first steps, with a blocking synchronisation each
    cooldown_steps: int = 0  # daso: last steps, likewise
    # daso: steps whose mean loss must fall, else the period is halved; 0: never halved
    plateau_steps: int = 0

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ConfigError(f"period={self.period} must be at least 1 step")
        for key in ("warmup_steps", "cooldown_steps", "plateau_steps"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 0")
