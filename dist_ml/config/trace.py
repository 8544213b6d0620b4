"""The configuration of a run's timeline."""

from dataclasses import dataclass

from dist_ml.errors import ConfigError

_MOST_STEPS = 1000


@dataclass(frozen=True)
class TraceConfig:
    """Which steps are traced (docs/timeline.md)."""

    enabled: bool = False  # trace=true; one file over all ranks, and one a rank
    skip: int = 2  # steps left out first, counted from where this process begins
    steps: int = 10  # traced, one after the other
    folder: str | None = None  # of the files; null: trace/ in the run folder
    profiler: bool = False  # torch's operators, too (torch.profiler): slows the traced steps

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ConfigError(f"skip={self.skip} must be at least 0")
        if not 1 <= self.steps <= _MOST_STEPS:
            raise ConfigError(
                f"steps={self.steps} must be from 1 to {_MOST_STEPS:,}: a viewer takes no more"
            )
        if self.folder is not None and (not self.folder.strip() or "\0" in self.folder):
            raise ConfigError("folder is empty; leave it out for trace/ in the run folder")
