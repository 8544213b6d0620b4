"""The configuration of the operator axis."""

from dataclasses import dataclass, field

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class OperatorConfig:
    """How the ranks of the operator axis share each layer; read where mesh.operator is above 1."""

    # 1d: outputs of one layer, inputs of the next; 1d_sharded: and the rows between them; 2d, 2.5d,
    # 3d; auto: the one with the fewest words at this batch
    layout: str = "1d"
    # layers, by name or its beginning, that have another layout
    layers: dict[str, str] = field(default_factory=dict)
    # 2d: rows, columns; 2.5d: copies, rows, columns; 3d: rows, outputs, inputs; empty: the sides
    # with the fewest words
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(side < 1 for side in self.grid):
            raise ConfigError(f"grid={list(self.grid)} must be of sides of at least 1 rank")
