"""Zero bubble H1 and H2: weight gradients wait, and fill what would be idle.

Source: Qi, Wan, Huang, Lin, "Zero bubble pipeline parallelism", ICLR 2024 (arXiv 2401.10241),
section 2.
"""

from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request, require_at_least


def zb_h1(request: Request) -> Schedule:
    """As many activations as 1F1B's first stage, D, on every rank; idle (D-1)(F + I - W)."""
    ranks, microbatches = request.ranks, request.microbatches
    orders = [_order(s, microbatches, ranks - s - 1, s) for s in range(ranks)]
    return one_pipe("zb_h1", orders, range(ranks), microbatches)


def zb_h2(request: Request) -> Schedule:
    """2D - 1 activations on every rank; idle (D-1)(F + I - 2W), none where the three are equal."""
    ranks, microbatches = request.ranks, request.microbatches
    require_at_least("zb_h2", request, 2 * ranks - 1)
    orders = [_order(s, microbatches, 2 * (ranks - s) - 2, 2 * s) for s in range(ranks)]
    return one_pipe("zb_h2", orders, range(ranks), microbatches)


def _order(stage: int, microbatches: int, warmup: int, delay: int) -> list[Action]:
    """`warmup` forwards; then F, I in turn, with a W in each turn after the first `delay`."""
    warmup = min(warmup, microbatches)
    actions = [Action(stage, "F", m) for m in range(warmup)]
    weights = 0
    for turn in range(microbatches):
        if warmup + turn < microbatches:
            actions.append(Action(stage, "F", warmup + turn))
        actions.append(Action(stage, "I", turn))
        if turn >= delay:
            actions.append(Action(stage, "W", weights))
            weights += 1
    return actions + [Action(stage, "W", m) for m in range(weights, microbatches)]
