"""What the user fixes of a plan, instead of leaving it to the planner."""

from typing import NamedTuple

from dist_ml.errors import ConfigError
from dist_ml.gemm.grid import Grid, Tiles


class Orders(NamedTuple):
    """Is each matrix stored column-major (it is a transpose view)? The plan's layouts then are,
    too, and nothing is copied.
    """

    a: bool = False
    b: bool = False


class Choice(NamedTuple):
    """None: the planner chooses. Which algorithm honours which field: `family.GEMMS`."""

    grid: Grid | None = None
    panel: int | None = None  # width along K
    replication: int | None = None  # layers of summa_25d
    tiles: Tiles | None = None  # of C, one after the other (algorithms that gather)

    @property
    def fixed(self) -> tuple[str, ...]:
        """The names of the fields that are given."""
        return tuple(name for name, value in self._asdict().items() if value is not None)

    def check(self) -> None:
        """`ConfigError` for what no algorithm takes."""
        if self.panel is not None and self.panel < 1:
            raise ConfigError(f"panel={self.panel} must be at least 1")
