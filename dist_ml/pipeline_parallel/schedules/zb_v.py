"""Zero bubble V: two stages a rank, down and up again, so that the last stage meets the first.

Source: Qi, Wan, Nabarro, Lin, "Pipeline parallelism with controllable memory", NeurIPS 2024 (arXiv
2405.15362), section 4, and "Zero bubble pipeline parallelism", section 6.
"""

from dist_ml.pipeline_parallel.schedule import Action, Kind, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request, require_at_least


def v_places(ranks: int) -> list[int]:
    """The rank of each of 2D stages: down the ranks and up again."""
    return [*range(ranks), *reversed(range(ranks))]


class VOrder:
    """The order of one rank with two stages, each kind of action going through the micro-batches
    in turn; `down` and `up` are the rank's stages.
    """

    def __init__(self, rank: int, ranks: int, microbatches: int) -> None:
        self._stages = (rank, 2 * ranks - 1 - rank)
        self._microbatches = microbatches
        self._next: dict[tuple[int, Kind], int] = {}
        self.actions: list[Action] = []

    def add(self, *kinds: str) -> None:
        """Append the next micro-batch of each, like "F0" (stage down, forward) or "B1"; what has
        run for all micro-batches already is left out.
        """
        for text in kinds:
            chunk = int(text[1])
            kind: Kind = text[0]  # type: ignore[assignment]
            microbatch = self._next.get((chunk, kind), 0)
            if microbatch < self._microbatches:
                self.actions.append(Action(self._stages[chunk], kind, microbatch))
                self._next[chunk, kind] = microbatch + 1

    def repeat(self, times: int, *kinds: str) -> None:
        """`add` so many times."""
        for _ in range(times):
            self.add(*kinds)


def zb_v(request: Request) -> Schedule:
    """No bubble where F, I and W take equally long, with D activations (2D of half stages) a rank.

    Twice the messages of 1F1B.
    """
    ranks, microbatches = request.ranks, request.microbatches
    require_at_least("zb_v", request, 2 * ranks - 1)
    orders = [_order(rank, ranks, microbatches) for rank in range(ranks)]
    return one_pipe("zb_v", orders, v_places(ranks), microbatches)


def _order(rank: int, ranks: int, microbatches: int) -> list[Action]:
    order = VOrder(rank, ranks, microbatches)
    order.repeat(2 * (ranks - rank) - 1, "F0")
    order.repeat(rank, "F1", "F0")
    order.repeat(ranks - rank, "F1", "I1", "W1")
    order.repeat(microbatches - ranks, "F0", "I0", "W0", "F1", "I1", "W1")
    order.repeat(rank, "I0", "I1")
    order.repeat(ranks - rank, "I0", "W0")
    order.repeat(microbatches, "W1")
    order.repeat(microbatches, "W0")
    return order.actions
