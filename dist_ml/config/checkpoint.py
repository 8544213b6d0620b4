"""The configuration of checkpoints."""

from dataclasses import dataclass

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved, so that it can go on from there (docs/checkpoints.md)."""

    every: int = 0  # steps between checkpoints; 0: none, but for a signal to a run with resume
    keep_last: int = 2  # the newest so many stay
    keep_every: int | None = None  # those of a step that this divides stay as well; null: none
    # files are written by a thread while training goes on, from a copy of the state in memory
    asynchronous: bool = False

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"every={self.every} must be at least 1 step, or 0 for none")
        if self.keep_last < 1:
            raise ConfigError(f"keep_last={self.keep_last} must be at least 1")
        if self.keep_every is not None and self.keep_every < 1:
            raise ConfigError(f"keep_every={self.keep_every} must be at least 1, or null for none")
