"""What makes a model's layers on the ranks of the operator axis."""

from collections.abc import Mapping

from torch import nn

from dist_ml.errors import ConfigError
from dist_ml.kernels.tuner import Tuner
from dist_ml.models.layers import LayerFactory
from dist_ml.models.spread import WHOLE, Spread
from dist_ml.nn.tuning import linear_factory
from dist_ml.operator_parallel.conversion import Conversion
from dist_ml.operator_parallel.convolution import ParallelConvolution
from dist_ml.operator_parallel.embedding import (
    ParallelEmbedding,
    ParallelPositions,
    ParallelProjection,
    ParallelTiedLinear,
)
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import WHOLE_LAYER, LayerCut, cut_for
from dist_ml.operator_parallel.linear import ParallelLinear
from dist_ml.operator_parallel.norm import ParallelGroupNorm, ParallelNorm
from dist_ml.operator_parallel.words import Layer


class ParallelLayers(LayerFactory):
    """Each layer cut over `grid` by the layout of its name: that of the longest prefix in `named`
    (of whole parts of the name, between dots), else `layout`. Making layers is collective.
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
        if self._layout_of(name) == WHOLE_LAYER:
            return self._whole(name, inputs, outputs, given, units)
        cut = self._cut(name, given, self._take_first())
        enter = Conversion(given, cut.given(self.grid), self.grid, inputs, units[0])
        whole = Layer(name, inputs, outputs, units)
        layer = ParallelLinear(whole, cut, self.grid, enter, self._kernel, self._tuner)
        return layer, cut.made(self.grid)

    def _whole(
        self, name: str, inputs: int, outputs: int, given: Spread, units: tuple[int, int]
    ) -> tuple[nn.Linear, Spread]:
        """The layer on every rank alike."""
        self._take_first()
        layer = self._make_linear(name, inputs, outputs)
        if given.is_whole:
            return layer, WHOLE
        enter = Conversion(given, WHOLE, self.grid, inputs, units[0])
        layer.register_forward_pre_hook(lambda _, x: (enter(x[0]),))
        return layer, WHOLE

    def convolution(
        self,
        name: str,
        channels_in: int,
        channels_out: int,
        kernel: int,
        given: Spread,
        stride: int = 1,
        units: tuple[int, int] = (1, 1),
    ) -> tuple[nn.Conv2d, Spread]:
        cut = self._cut(name, given, self._take_first())
        if not cut.layout.replicated:
            raise ConfigError(
                f"operator_parallel.layout={self._layout_of(name)} can't cut the convolution "
                f"{name}; use 1d"
            )
        channels = channels_in, channels_out
        layer = ParallelConvolution(channels, kernel, stride, units, cut, self.grid)
        return layer, cut.made(self.grid)

    def group_norm(self, name: str, groups: int, channels: int, given: Spread) -> nn.GroupNorm:  # noqa: ARG002
        return ParallelGroupNorm(groups, channels, given, self.grid)

    def embedding(self, name: str, num: int, width: int) -> tuple[nn.Embedding, Spread]:
        self._take_first()
        cut = self._cut(name, WHOLE)
        return ParallelEmbedding(num, width, cut, self.grid), cut.given(self.grid)

    def projection(self, name: str, inputs: int, width: int) -> tuple[nn.Linear, Spread]:
        self._take_first()
        made = self._cut(name, WHOLE).given(self.grid)
        enter = Conversion(WHOLE, Spread(made.rows), self.grid, inputs)
        return ParallelProjection(inputs, width, enter, made, self.grid), made

    def positions(self, name: str, num: int, width: int, given: Spread) -> nn.Embedding:  # noqa: ARG002
        return ParallelPositions(num, width, given, self.grid)

    def norm(self, name: str, width: int, given: Spread) -> nn.LayerNorm:  # noqa: ARG002
        return ParallelNorm(width, given, self.grid)

    def tied_linear(
        self,
        name: str,  # noqa: ARG002
        embedding: nn.Embedding,
        given: Spread,
    ) -> tuple[nn.Module, Spread]:
        assert isinstance(embedding, ParallelEmbedding)
        cut = embedding.cut
        enter = Conversion(given, cut.given(self.grid), self.grid, embedding.width)
        return ParallelTiedLinear(embedding, enter, self.grid), cut.made(self.grid)

    def check_names(self) -> None:
        """`ConfigError` for a layout of layers that the model doesn't have."""
        for prefix in self._named:
            if prefix not in self._used:
                raise ConfigError(
                    f"operator_parallel.layers.{prefix} names no layer of the model; leave it out"
                )

    def _cut(self, name: str, given: Spread, reads_data: bool = False) -> LayerCut:
        layout = self._layout_of(name)
        if layout == WHOLE_LAYER:
            raise ConfigError(
                f"operator_parallel.layers can't have {name} whole, only linear layers; leave it "
                "out"
            )
        return cut_for(layout, given, self.grid, reads_data)

    def _take_first(self) -> bool:
        """Is the layer that is made now the model's first?"""
        first, self._first = self._first, False
        return first

    def _layout_of(self, name: str) -> str:
        matching = [prefix for prefix in self._named if f"{name}.".startswith(f"{prefix}.")]
        self._used.update(matching)
        return self._named[max(matching, key=len)] if matching else self._layout
