"""A plan for people: (what, how much) lines; words and memory are the most loaded rank's."""

from dist_ml.gemm import prediction
from dist_ml.gemm.plan import Plan
from dist_ml.measure.cost_model import CostModel

Line = tuple[str, str]


def lines(plan: Plan, model: CostModel) -> list[Line]:
    """Everything that a plan says, and the seconds that `model` predicts."""
    return [*_how(plan), *_costs(plan, model), *_where(plan)]


def _how(plan: Plan) -> list[Line]:
    p, grid, tiles = plan.shape, plan.grid, plan.tiles
    idle = f", {p.ranks - grid.size:,} of {p.ranks:,} ranks idle" if grid.size < p.ranks else ""
    sizes = f"{p.m} x {p.k} times {p.k} x {p.n}"
    held = f"{plan.buffers} held at a time; C reduced in {plan.reduce_parts} part(s)"
    found = [
        ("product", f"{sizes}, {p.word_bytes} bytes a word, {p.ranks:,} ranks"),
        ("algorithm", plan.algorithm),
        ("grid", f"{grid.pm} x {grid.pn} x {grid.pk} (along m, n, k){idle}"),
        ("steps", f"{len(plan.panels(0))}, {held}"),
    ]
    if tiles != (1, 1):
        order = "of a rank's block of C, one after the other"
        found.append(("tiles", f"{tiles.tm} x {tiles.tn} {order}"))
    return found


def _costs(plan: Plan, model: CostModel) -> list[Line]:
    p, bound, limited = plan.shape, plan.bound_words, plan.limited_bound_words
    ratio = f"{plan.words / bound:.3f} of the bound {bound:,.0f}" if bound else "bound 0"
    seconds, computing = prediction.seconds(plan, model), model.compute_seconds(plan.flops(0))
    parts = f"shards {plan.shard_words * p.word_bytes:,}, working {plan.working_bytes:,}"
    found = [
        ("words", f"{plan.words:,} received by a rank: {ratio}"),
        ("messages", f"{plan.messages:,} sent by a rank"),
        ("memory", f"{plan.peak_bytes:,} bytes: {parts}"),
        ("predicted", f"{seconds:.4g} s, {computing:.4g} s of it computing"),
    ]
    if limited:
        cosma = f"COSMA's bound {limited:,.0f} with S = {p.memory:,} bytes"
        found.insert(1, ("", f"{plan.words / limited:.3f} of {cosma}"))
    return found


def _where(plan: Plan) -> list[Line]:
    layouts = ("A", plan.layout_a), ("B", plan.layout_b), ("C", plan.layout_c)
    return [(name, layout.describe()) for name, layout in layouts]
