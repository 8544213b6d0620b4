"""From a configuration to layers that the ranks of the operator axis share."""

from dist_ml.comm.mesh import Mesh
from dist_ml.config.operator import OperatorConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.layout import LAYOUTS, sides_for


def build_layers(config: TrainConfig, mesh: Mesh) -> ParallelLayers:
    """What makes this rank's parts of the model's layers. `ConfigError` for a layout or a grid that
    can't be. Collective.
    """
    chosen = config.operator_parallel
    comm = mesh.comm("operator")
    grid = OperatorGrid(comm, sides_for(chosen.layout, comm.size, chosen.grid))
    return ParallelLayers(grid, chosen.layout, chosen.layers, config.kernel)


def check_operator_axis(config: TrainConfig, mesh: Mesh) -> None:
    """`ConfigError` for keys that this mesh has no use for, or can't serve."""
    chosen, size = config.operator_parallel, mesh.sizes["operator"]
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
    for name in (chosen.layout, *chosen.layers.values()):
        cuts_rows = name in LAYOUTS and not LAYOUTS[name].replicated
        if cuts_rows and mesh.sizes["pipeline"] > 1:
            raise ConfigError(
                f"operator_parallel.layout={name} cuts the samples of activations, which stages "
                "send whole; use 1d with mesh.pipeline above 1"
            )
