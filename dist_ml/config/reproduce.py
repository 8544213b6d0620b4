"""The configuration of reproducible training."""

from dataclasses import dataclass

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class ReproduceConfig:
    """How far a run's last bits depend on its mesh (docs/reproducibility.md)."""

    # pieces of each batch whose gradients are summed in a fixed tree, a multiple of mesh.data;
    # null: in the order that is fastest
    shards: int | None = None

    def __post_init__(self) -> None:
        if self.shards is not None and self.shards < 1:
            raise ConfigError(f"shards={self.shards} must be at least 1, or null")
