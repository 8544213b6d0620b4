"""From a configuration to a plan, and a plan in words. Needs neither torch nor MPI."""

from dist_ml.config.gemm import GemmConfig
from dist_ml.errors import ConfigError
from dist_ml.gemm import family, prediction
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


def in_words(plan: Plan, model: CostModel) -> list[tuple[str, str]]:
    """(what, how much) lines for people; words and memory are the most loaded rank's."""
    p = plan.shape
    idle = (
        f", {p.ranks - plan.grid.size:,} of {p.ranks:,} ranks idle"
        if plan.grid.size < p.ranks
        else ""
    )
    ratio = (
        f"{plan.words / plan.bound_words:.3f} of the bound {plan.bound_words:,.0f}"
        if plan.bound_words
        else "bound 0"
    )
    lines = [
        (
            "product",
            f"{p.m} x {p.k} times {p.k} x {p.n}, {p.word_bytes} bytes a word, {p.ranks:,} ranks",
        ),
        ("algorithm", plan.algorithm),
        ("grid", f"{plan.grid.pm} x {plan.grid.pn} x {plan.grid.pk} (along m, n, k){idle}"),
        (
            "steps",
            f"{len(plan.panels(0))}, {plan.buffers} held at a time; C reduced in "
            f"{plan.reduce_parts} part(s)",
        ),
        ("words", f"{plan.words:,} received by a rank: {ratio}"),
        ("messages", f"{plan.messages:,} sent by a rank"),
        (
            "memory",
            f"{plan.peak_bytes:,} bytes: shards {plan.shard_words * p.word_bytes:,}, working "
            f"{plan.working_bytes:,}",
        ),
        (
            "predicted",
            f"{prediction.seconds(plan, model):.4g} s, "
            f"{model.compute_seconds(plan.flops(0)):.4g} s of it computing",
        ),
        ("A", plan.layout_a.describe()),
        ("B", plan.layout_b.describe()),
        ("C", plan.layout_c.describe()),
    ]
    if plan.tiles != (1, 1):
        lines.insert(
            4,
            (
                "tiles",
                f"{plan.tiles.tm} x {plan.tiles.tn} of a rank's block of C, one after the other",
            ),
        )
    if plan.limited_bound_words:
        limited = plan.limited_bound_words
        lines.insert(
            -5,
            (
                "",
                f"{plan.words / limited:.3f} of COSMA's bound {limited:,.0f} with S = "
                f"{p.memory:,} bytes",
            ),
        )
    return lines
