"""Cut a model's blocks into stages of about equal cost."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from dist_ml.errors import ConfigError
from dist_ml.partition import Range


def cut_evenly(costs: Sequence[float], num_stages: int) -> list[Range]:
    """Contiguous ranges of blocks whose most expensive one is as cheap as can be; exact.

    Dynamic programming over the last cut: O(stages x blocks^2). Of several best cuts, the one with
    the earliest stages as short as possible. `ConfigError` where there are fewer blocks than
    stages.
    """
    blocks = len(costs)
    if num_stages > blocks:
        raise ConfigError(
            f"{num_stages} stages need as many blocks, but the model has {blocks}; use at most "
            f"{blocks} stages, or a deeper model"
        )
    until = [0.0, *accumulate(costs)]
    # best[k][j]: the least maximum of k stages over the first j blocks, and where the last begins
    best: list[list[tuple[float, int]]] = [[(float("inf"), 0)] * (blocks + 1)]
    best[0][0] = (0.0, 0)
    for stage in range(1, num_stages + 1):
        row = [(float("inf"), 0)] * (blocks + 1)
        for j in range(stage, blocks + 1):
            row[j] = min(
                (max(best[stage - 1][i][0], until[j] - until[i]), i) for i in range(stage - 1, j)
            )
        best.append(row)
    cuts: list[Range] = []
    stop = blocks
    for stage in range(num_stages, 0, -1):
        start = best[stage][stop][1]
        cuts.append(Range(start, stop))
        stop = start
    return cuts[::-1]


def cut_by_hand(names: Sequence[str], first_blocks: Sequence[str]) -> list[Range]:
    """Stages that begin with the named blocks; `ConfigError` for a name that is none or out of
    order.
    """
    places = []
    for name in first_blocks:
        if name not in names:
            raise ConfigError(f"no block is named {name}; the model's are {', '.join(names)}")
        places.append(list(names).index(name))
    if not places or places[0] != 0 or sorted(set(places)) != places:
        raise ConfigError(
            f"stages must begin with blocks in the model's order, the first with {names[0]}, not "
            f"with {', '.join(first_blocks) or 'none'}"
        )
    bounds = [*places, len(names)]
    return [Range(start, stop) for start, stop in pairwise(bounds)]
