"""From a configuration to a plan. Needs neither torch nor MPI."""

from dist_ml.config.gemm import GemmConfig
from dist_ml.errors import ConfigError
from dist_ml.gemm import family
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.grid import Grid
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.measure.cost_model import CostModel, Link

WORD_BYTES = {"fp32": 4, "fp64": 8, "bf16": 2}


def plan_of(config: GemmConfig, started: int | None = None) -> Plan:
    """The plan for the configured ranks, or for those that were started."""
    ranks = config.ranks or started or 1
    if started is not None and ranks != started:
        raise ConfigError(
            f"ranks={config.ranks}, but {started} were started; start {config.ranks}, or leave "
            "ranks=null"
        )
    word_bytes = WORD_BYTES[config.dtype]
    shape = ProductShape(
        config.m, config.n, config.k, ranks, word_bytes, max(4, word_bytes), config.memory_bytes
    )
    grid = Grid(*config.grid) if config.grid is not None else None
    if grid is not None and grid.size != ranks:
        raise ConfigError(
            f"grid {' x '.join(map(str, grid))} = {grid.size} ranks, but there are {ranks}; "
            f"choose sides that multiply to {ranks}"
        )
    choice = Choice(grid, config.panel, config.replication)
    orders = Orders(config.transpose_a, config.transpose_b)
    return family.plan(config.algorithm, shape, choice, orders, cost_model_of(config))


def cost_model_of(config: GemmConfig) -> CostModel:
    link = Link(config.link_microseconds * 1e-6, config.link_gbytes * 1e9)
    return CostModel.one_link(link, config.rank_gflops * 1e9)
