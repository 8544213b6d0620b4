"""The configuration of the pipeline axis."""

from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class PipelineConfig:
    """How the stages of a model take turns; read where mesh.pipeline is above 1."""

    # gpipe, one_f_one_b, interleaved, chimera, zb_h1, zb_h2, zb_v, dualpipe_v, pipedream_2bw, file
    name: str = "one_f_one_b"
    # of a step, for each replica of the model; null: twice the ranks of the pipeline axis
    microbatches: int | None = None
    chunks: int = 2  # interleaved: stages a rank
    pipes: int = 2  # chimera: ways through the ranks, in both directions together
    # chimera with more micro-batches than ranks: auto, direct or doubling
    concatenation: str = "auto"
    file: str | None = None  # file: a CSV of the actions of each rank, as torch writes it
    # the first block of each stage; empty: cut so that the most expensive stage is cheapest
    stages: tuple[str, ...] = ()
    # what a block costs: modelled, by its weights, or measured, a micro-batch's passes on rank 0
    cut: Literal["modelled", "measured"] = "modelled"
    # when ranks agree on a step's loss and norm: before its update, or after it, while the next one
    # has begun; auto: after, where the schedule gains by it
    validate: Literal["auto", "before", "after"] = "auto"
    recompute: bool = False  # keep what a stage received, and run it forward once more for backward

    def num_microbatches(self, num_ranks: int) -> int:
        """Of a step on so many ranks of the pipeline axis."""
        return self.microbatches if self.microbatches is not None else 2 * num_ranks

    def __post_init__(self) -> None:
        for name in ("microbatches", "chunks", "pipes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
