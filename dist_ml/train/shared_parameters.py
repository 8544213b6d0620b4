"""Parameters that several ranks of a pipeline use: each holds a copy, updated alike, because each
has the sum of all uses' gradients.
"""

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.train.pipeline import Pipeline


class SharedParameters:
    """Those of this rank. `counts`: what each counts for in sums over the ranks of the pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        schedule, comm = pipeline.schedule, pipeline.comm
        copies = schedule.holders(schedule.stages_of(comm.rank)[0])
        self._tied: list[tuple[torch.nn.Parameter, Communicator, int]] = []
        self.counts: dict[torch.nn.Parameter, float] = {}
        for places in pipeline.shared:
            users = sorted({rank for place in places for rank in schedule.holders(place.stage)})
            own = [place for place in places if comm.rank in schedule.holders(place.stage)]
            group = comm.split(0 if own else None, comm.rank)
            if own:
                assert group is not None
                same = len(set(copies) & set(users))
                self._tied.append((own[0].parameter, group, same))
                self.counts[own[0].parameter] = same / len(users)

    def sum(self) -> None:
        """Over the uses; divided by the copies that the reducer will add up. Collective."""
        for parameter, group, same in self._tied:
            sink = getattr(parameter, "gradient_sink", None)
            if sink is not None:
                sink.zero_if_empty()
            assert parameter.grad is not None
            group.allreduce(parameter.grad)
            if same > 1:
                parameter.grad.div_(same)

    def close(self) -> None:
        """Give the communicators back. Collective."""
        for _, group, _ in self._tied:
            group.free()
