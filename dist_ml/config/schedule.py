"""The configuration of `dist-ml schedule`: one pipeline schedule, planned and drawn."""

from dataclasses import dataclass
from pathlib import Path

from dist_ml.errors import ConfigError

_LARGEST_COST = 1e12
_PICTURES = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class ScheduleConfig:
    """What `configs/schedule.yaml` composes."""

    # gpipe, one_f_one_b, interleaved, chimera, zb_h1, zb_h2, zb_v, dualpipe_v, pipedream_2bw, file
    name: str
    stages: int | None  # of the model; null: as many as the ranks hold
    ranks: int | None  # of the pipeline; null: as many as hold the stages, or the file has, or 4
    microbatches: int | None  # of a step; null: as many as the file has, or twice the ranks
    chunks: int  # interleaved: stages a rank
    pipes: int  # chimera: ways through the ranks, in both directions together
    concatenation: str  # chimera: auto, direct or doubling
    file: str | None  # file: a CSV of the actions of each rank, as torch writes it
    # time units of forward, input part and weight part of a micro-batch on a stage; or of forward
    # and the whole backward pass
    costs: tuple[float, ...]
    message: float  # time units of a message between two ranks
    run: str | None  # the folder of a run whose last step is drawn below the plan
    csv: str | None  # write the actions there, as torch reads them
    plot: str | None  # draw there: .svg, .png or .pdf

    def __post_init__(self) -> None:
        for key in ("stages", "ranks", "microbatches", "chunks", "pipes"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}={value} must be at least 1")
        good = all(0 <= cost <= _LARGEST_COST for cost in self.costs)
        if len(self.costs) not in (2, 3) or not good or not any(self.costs):
            raise ConfigError(
                f"costs={list(self.costs)} must be two or three numbers from 0 to "
                f"{_LARGEST_COST:g}, not all 0: [forward,backward] or [forward,input,weight]"
            )
        if not 0 <= self.message <= _LARGEST_COST:
            raise ConfigError(f"message={self.message} must be from 0 to {_LARGEST_COST:g}")
        if self.plot is not None and Path(self.plot).suffix not in _PICTURES:
            raise ConfigError(f"plot={self.plot} must end in one of {', '.join(_PICTURES)}")
