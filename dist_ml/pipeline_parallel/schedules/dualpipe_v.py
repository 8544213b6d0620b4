"""DualPipeV: DualPipe's bidirectional order folded into a V, with one copy of the weights.

Source: DeepSeek-AI, "DeepSeek-V3 technical report" (arXiv 2412.19437), section 3.2.1, for DualPipe;
its "cut in half" into a V by Qi et al. of Sea AI Lab, 2025.
"""

from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request, require_at_least
from dist_ml.pipeline_parallel.schedules.zb_v import VOrder, v_places


def dualpipe_v(request: Request) -> Schedule:
    """Stages r and 2D-1-r on rank r; 2D + 1 activations of half stages at most.

    The forward of one micro-batch stands beside the backward of another, so that an executor may
    let the communication of one pass while the other computes.
    """
    ranks, microbatches = request.ranks, request.microbatches
    require_at_least("dualpipe_v", request, 2 * ranks)
    orders = [_order(rank, ranks, microbatches) for rank in range(ranks)]
    return one_pipe("dualpipe_v", orders, v_places(ranks), microbatches)


def _order(rank: int, ranks: int, microbatches: int) -> list[Action]:
    """The eight phases of the published order; whole backward passes where nothing is idle."""
    order = _WeightsLater(rank, ranks, microbatches)
    after = ranks - rank - 1  # ranks further down
    order.repeat(2 * after, "F0")
    order.repeat(rank + 1, "F0", "F1")
    for _ in range(after):
        order.input_backward(1)
        order.weights()
        order.add("F1")
    for _ in range(microbatches - 2 * ranks + rank + 1):
        order.run("F0", "B1", "F1", "B0")
    for _ in range(after):
        order.run("B1", "F1", "B0")
    for turn in range(rank + 1):
        split = [2 * turn + half >= rank + 1 for half in (0, 1)]
        for chunk in (1, 0):
            (order.input_backward if split[1 - chunk] else order.whole_backward)(chunk)
    for _ in range(after):
        order.weights()
        order.input_backward(0)
    order.weights_left()
    return order.actions


class _WeightsLater(VOrder):
    """Keeps the weight parts of split backward passes until there is time for them, in order."""

    def __init__(self, rank: int, ranks: int, microbatches: int) -> None:
        super().__init__(rank, ranks, microbatches)
        self._backward = [0, 0]
        self._waiting: list[Action] = []

    def run(self, *kinds: str) -> None:
        """Forwards and whole backwards in the order given."""
        for kind in kinds:
            if kind[0] == "F":
                self.add(kind)
            else:
                self.whole_backward(int(kind[1]))

    def whole_backward(self, chunk: int) -> None:
        self.actions.append(Action(self._stages[chunk], "B", self._take(chunk)))

    def input_backward(self, chunk: int) -> None:
        action = Action(self._stages[chunk], "I", self._take(chunk))
        self.actions.append(action)
        self._waiting.append(action._replace(kind="W"))

    def weights(self) -> None:
        """The weight part that has waited longest."""
        self.actions.append(self._waiting.pop(0))

    def weights_left(self) -> None:
        """All that still wait."""
        self.actions += self._waiting
        self._waiting = []

    def _take(self, chunk: int) -> int:
        self._backward[chunk] += 1
        return self._backward[chunk] - 1
