"""The configuration of sparse gradient exchange."""

import math
from dataclasses import dataclass, field
from typing import Literal

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class SparseConfig:
    """What is sent of the gradient, how it is remembered, and how it is summed."""

    # none: the dense exchange; auto: what the calibrated cost model finds fastest; or one of
    # SPARSE_ALLREDUCES
    allreduce: str = "none"
    density: float = 0.01  # share of the elements that each rank sends
    warmup_densities: tuple[
        float, ...
    ] = ()  # densities before that one, each for warmup_steps steps; logged when they change
    warmup_steps: int = 100  # steps of each warm-up density
    densities: dict[str, float] = field(
        default_factory=dict
    )  # beginning of a parameter's name -> a density of its own
    dense_below: int = 2049  # biases and tensors with fewer elements are summed densely
    # how the largest elements are found: one of SELECTIONS
    selection: str = "exact"
    # steps between exact thresholds (selection=threshold; oktopk's global one)
    threshold_steps: int = 32
    # steps between new boundaries of the ranks' regions (oktopk, spardl)
    repartition_steps: int = 64
    # in messages; all but plain also code the indices
    values: Literal["plain", "fp32", "bf16", "int4"] = "plain"
    qsgd_bits: Literal[0, 2, 4, 8] = 0  # dense_split_allgather: of the dense half; 0: as it is
    momentum: float = 0.0  # momentum correction (DGC); the optimizer's must then be 0
    # with momentum correction: forget the momentum of what was sent (DGC)
    factor_masking: bool = True
    # of each rank's own gradient, as if the sum were clipped to it; null: not clipped
    clip_norm: float | None = None
    hierarchical: bool = False  # sum densely inside a node first, and sparsely between nodes
    # exchange this many buckets while the backward pass goes on; 0: everything after it
    overlap: int = 0
    # steps between measurements of xi, each at the price of a dense allreduce; 0: never
    diagnose_every: int = 0

    def __post_init__(self) -> None:
        named = [
            ("density", self.density),
            *((f"densities.{name}", value) for name, value in self.densities.items()),
        ]
        for key, density in [
            *named,
            *(("warmup_densities", value) for value in self.warmup_densities),
        ]:
            if not (math.isfinite(density) and 0 < density <= 1):
                raise ConfigError(
                    f"{key}={density} must be above 0 and at most 1: the share of elements that "
                    "is sent"
                )
        for key in ("warmup_steps", "threshold_steps", "repartition_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 1")
        for key in ("dense_below", "overlap", "diagnose_every"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum} must be in [0, 1)")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm={self.clip_norm} must be above 0, or null not to clip")
        if self.clip_norm is not None and self.overlap:
            raise ConfigError(
                f"clip_norm={self.clip_norm} needs the whole gradient before a bucket is sent; "
                "set overlap=0 or clip_norm=null"
            )
