"""What makes a model's layers on the ranks of the operator axis."""

from collections.abc import Mapping

from torch import nn

from dist_ml.errors import ConfigError
from dist_ml.kernels.tuner import Tuner
from dist_ml.models.layers import LayerFactory
from dist_ml.models.spread import WHOLE, Spread
from dist_ml.nn.tuning import linear_factory
from dist_ml.operator_parallel.conversion import Conversion
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import WHOLE_LAYER, cut_for
from dist_ml.operator_parallel.linear import ParallelLinear
from dist_ml.operator_parallel.words import Layer


class ParallelLayers(LayerFactory):
    """Each layer cut over `grid` by the layout of its name: that of the longest prefix in `named`,
    else `layout`. Making layers is collective.
    """

    def __init__(
        self, grid: OperatorGrid, layout: str, named: Mapping[str, str], kernel: str
    ) -> None:
        self.grid, self.num_parts = grid, grid.comm.size
        self._layout, self._named = layout, dict(named)
        self._kernel, self._tuner = kernel, Tuner()
        self._make_linear = linear_factory(kernel)
        self._used: set[str] = set()
        self._first = True  # nothing was made yet: the next layer's inputs are the data

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        given: Spread = WHOLE,
        units: tuple[int, int] = (1, 1),
    ) -> tuple[nn.Linear, Spread]:
        layout = self._layout_of(name)
        if layout == WHOLE_LAYER:
            return self._whole(name, inputs, outputs, given, units)
        cut = cut_for(layout, given, self.grid)
        enter = Conversion(given, cut.given(self.grid), self.grid, inputs, units[0])
        first, self._first = self._first, False
        layer = ParallelLinear(
            Layer(name, inputs, outputs, units),
            cut,
            self.grid,
            enter,
            self._kernel,
            self._tuner,
            reads_data=first,
        )
        return layer, cut.made(self.grid)

    def _whole(
        self, name: str, inputs: int, outputs: int, given: Spread, units: tuple[int, int]
    ) -> tuple[nn.Linear, Spread]:
        """The layer on every rank alike."""
        layer = self._make_linear(name, inputs, outputs)
        if given.is_whole:
            return layer, WHOLE
        enter = Conversion(given, WHOLE, self.grid, inputs, units[0])
        layer.register_forward_pre_hook(lambda _, x: (enter(x[0]),))
        return layer, WHOLE

    def check_names(self) -> None:
        """`ConfigError` for a layout of layers that the model doesn't have."""
        for prefix in self._named:
            if prefix not in self._used:
                raise ConfigError(
                    f"operator_parallel.layers.{prefix} names no layer of the model; leave it out"
                )

    def _layout_of(self, name: str) -> str:
        matching = [prefix for prefix in self._named if name.startswith(prefix)]
        self._used.update(matching)
        return self._named[max(matching, key=len)] if matching else self._layout
