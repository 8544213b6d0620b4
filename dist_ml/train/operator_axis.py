"""From a configuration to layers that the ranks of the operator axis share."""

from collections.abc import Mapping

import torch

from dist_ml.comm.mesh import Mesh
from dist_ml.config.names import require_one_of
from dist_ml.config.operator import OperatorConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.models import Samples, build_model
from dist_ml.operator_parallel.grid import OperatorGrid, Sides
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.layout import LAYOUTS, WHOLE_LAYER, sides_for
from dist_ml.operator_parallel.recorded_layers import RecordedLayers
from dist_ml.operator_parallel.words import fewest_words

AUTO = "auto"
NAMES = (AUTO, *LAYOUTS)
_COPYING = "2.5d"  # the layout that keeps several copies of its weights


def build_layers(
    config: TrainConfig, mesh: Mesh, samples: Samples, num_samples: int
) -> ParallelLayers:
    """What makes this rank's parts of the model's layers, for micro-batches of at most
    `num_samples`. Collective; `check_operator_axis` has found nothing wrong.
    """
    chosen = config.operator_parallel
    comm = mesh.comm("operator")
    layout, sides = choose_layout(config, mesh.sizes, samples, num_samples)
    return ParallelLayers(OperatorGrid(comm, sides), layout, chosen.layers, config.kernel)


def choose_layout(
    config: TrainConfig, mesh_sizes: dict[str, int], samples: Samples, num_samples: int
) -> tuple[str, Sides]:
    """The layout and its grid: `auto` takes those with the fewest words for a micro-batch of
    `num_samples`, each of which makes several vectors in models of tokens.
    """
    chosen, num_ranks = config.operator_parallel, mesh_sizes["operator"]
    if chosen.layout != AUTO:
        return chosen.layout, sides_for(chosen.layout, num_ranks, chosen.grid)
    recorded = RecordedLayers()
    with torch.device("meta"):
        model = build_model(config.model, samples, config.seed, layers=recorded)
    names = [name for name in LAYOUTS if _suits(name, mesh_sizes, recorded.convolves)]
    if config.sparse.allreduce != "none":
        names = [name for name in names if name != _COPYING]
    layers, row_items = recorded.linear_layers, model.rows_per_sample
    return fewest_words(layers, num_samples, num_ranks, names, row_items)


def check_operator_axis(config: TrainConfig, mesh_sizes: Mapping[str, int]) -> None:
    """`ConfigError` for keys that this mesh has no use for, or can't serve."""
    chosen, size = config.operator_parallel, mesh_sizes["operator"]
    if size == 1:
        if chosen != OperatorConfig():
            raise ConfigError(
                "operator_parallel.* has no effect with mesh.operator=1: leave it out, or set "
                "mesh.operator"
            )
        return
    if config.data_parallel.name in ("periodic", "daso"):
        raise ConfigError(
            f"data_parallel={config.data_parallel.name} is not built for mesh.operator={size}; use "
            "dense, zero1 or zero2"
        )
    if chosen.layout == AUTO and chosen.grid:
        raise ConfigError(
            f"operator_parallel.grid={list(chosen.grid)} has no effect with layout=auto, which "
            "chooses it; name a layout"
        )
    if chosen.layout == _COPYING and config.sparse.allreduce != "none":
        raise ConfigError(
            f"sparse={config.sparse.allreduce} has nothing to select from with operator_parallel."
            f"layout={chosen.layout}, whose copies of weights would select differently; use 1d, 2d "
            "or 3d, or sparse=none"
        )
    for key, name in _named(chosen):
        _check_layout(key, name, chosen, mesh_sizes)


def _named(chosen: OperatorConfig) -> list[tuple[str, str]]:
    layers = [(f"layers.{layer}", name) for layer, name in chosen.layers.items()]
    return [("layout", chosen.layout), *layers]


def _check_layout(
    key: str, name: str, chosen: OperatorConfig, mesh_sizes: Mapping[str, int]
) -> None:
    known = NAMES if key == "layout" else (*LAYOUTS, WHOLE_LAYER)
    require_one_of(f"operator_parallel.{key}", name, known)
    if name in (AUTO, WHOLE_LAYER):
        return
    if not LAYOUTS[name].replicated and mesh_sizes["pipeline"] > 1:
        raise ConfigError(
            f"operator_parallel.{key}={name} cuts the samples of activations, which stages send "
            "whole; use 1d with mesh.pipeline above 1"
        )
    if key == "layout":
        sides_for(name, mesh_sizes["operator"], chosen.grid)
    elif chosen.layout == AUTO or LAYOUTS[name].sides != LAYOUTS[chosen.layout].sides:
        raise ConfigError(
            f"operator_parallel.{key}={name} needs another grid than layout={chosen.layout}; name "
            "layouts of one grid (1d with 1d_sharded), or whole"
        )


def _suits(name: str, mesh_sizes: dict[str, int], convolves: bool) -> bool:
    """Can stages and all of the model's layers take this layout?"""
    return LAYOUTS[name].replicated or (mesh_sizes["pipeline"] == 1 and not convolves)
