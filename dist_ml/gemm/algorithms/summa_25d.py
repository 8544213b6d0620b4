"""SUMMA on each of c layers for a c-th of K, then a reduce-scatter over the layers.

Source: Solomonik, Demmel, "Communication-optimal parallel 2.5D matrix multiplication" (Euro-Par
2011); A and B start spread over the layers, so that none of them is broadcast first.
"""

from dist_ml.errors import ConfigError
from dist_ml.gemm.algorithms.broadcast_plan import broadcast_plan
from dist_ml.gemm.algorithms.flat_grid import divisors, flat_grid
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.grid import mean_words
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape


def plan(shape: ProductShape, choice: Choice, orders: Orders) -> Plan:
    """`choice.replication` layers (or those with the fewest words), or `choice.grid`."""
    if choice.grid is not None and choice.replication not in (None, choice.grid.pk):
        raise ConfigError(
            f"replication={choice.replication}, but grid={list(choice.grid)} has {choice.grid.pk} "
            "layers; give one of them"
        )
    if choice.grid is not None:
        return broadcast_plan("summa_25d", shape, choice.grid, choice, orders)
    layers = choice.replication or best_layers(shape)
    if shape.ranks % layers or layers > shape.sides[2]:
        raise ConfigError(
            f"replication={layers} must divide the {shape.ranks} ranks and be at most "
            f"k={shape.k}; use a divisor such as 1"
        )
    return broadcast_plan(
        "summa_25d", shape, flat_grid(shape, shape.ranks // layers, layers), choice, orders
    )


def best_layers(shape: ProductShape) -> int:
    """The number of layers with the fewest words, among those that divide the ranks."""
    usable = [layers for layers in divisors(shape.ranks) if layers <= shape.sides[2]]
    return min(
        usable,
        key=lambda layers: (
            mean_words(shape, *flat_grid(shape, shape.ranks // layers, layers)),
            layers,
        ),
    )
