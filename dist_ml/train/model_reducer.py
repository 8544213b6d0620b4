"""Gradients of a model that ranks share, along the pipeline or the operator axis: summed over those
that hold the same part, and what all holders of one model must agree on.
"""

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.data_parallel.gradients import places
from dist_ml.data_parallel.reduced_gradients import Counted, ReducedGradients, root
from dist_ml.data_parallel.reducer import GradientReducer, ReducerWrapper
from dist_ml.models import BlockModel
from dist_ml.placement import share_of
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.shared_parameters import SharedParameters
from dist_ml.train.slot_relay import SlotRelay


class ModelReducer(ReducerWrapper):
    """Sums this rank's gradients over the ranks that hold the same part of the model, by `inner`,
    and has the ranks of the model agree on the rest.

    Parameters that stages of several ranks use are summed over these first. Words beside `inner`'s:
    the slots and, `with_norm`, what the norm is made of (a word; in reproducible mode one for each
    parameter), in one message, once over the ranks of the model. With a `relay`, under an
    asynchronous schedule, the slots come from the last stage by that, and no norm is asked for:
    ranks that met at the end of a step would wait for the slowest.

    Gradients are exchanged as they become final where the ranks that exchange them run the same
    actions. Copies in pipes of different directions don't: one would wait in an exchange for the
    other, which waits for an action of the first.
    """

    def __init__(
        self,
        inner: GradientReducer,
        mesh: Mesh,
        model: BlockModel,
        pipeline: Pipeline | None,
        with_norm: bool = True,
        relay: SlotRelay | None = None,
    ) -> None:
        super().__init__(inner)
        self._with_norm = with_norm
        self._comm = mesh.comm("pipeline", "operator")
        self._shared = SharedParameters(pipeline) if pipeline else None
        copies = pipeline.num_copies if pipeline else 1
        operators = mesh.sizes["operator"]
        # Of what this rank holds, what counts: other pipes hold the same, and all ranks of the
        # operator axis the same slots, of which one rank's are taken, exactly.
        self._share = 1 / copies
        self._slot_share = 0.0 if mesh.coordinates["operator"] else self._share
        self._counted = _counted(model, operators, self._shared)
        self._eager = copies == 1 and not (pipeline and pipeline.shared)
        self._started = False
        self._relay = relay

    def start(self) -> None:
        """Gradients become final: where that may be told at once, exchanges begin."""
        if self._eager:
            self._started = True
            self._inner.start()

    def finish(self) -> ReducedGradients:
        if self._shared is not None:
            self._shared.sum()
        if not self._started:
            self._inner.start()
        self._started = False
        reduced = self._inner.finish()
        if self._relay is not None:
            return self._relay(reduced)
        squares = None
        if self._with_norm:
            squares = [self._share * square for square in reduced.squares(self._counted)]
        return ModelGradients(reduced, self._comm, self._slot_share, squares)

    def close(self) -> None:
        super().close()
        if self._relay is not None:
            self._relay.close()
        if self._shared is not None:
            self._shared.close()


class ModelGradients(ReducedGradients):
    """The gradient of the whole model, of which this rank holds its part.

    `slot_share`: what this rank's slots count for in sums over the model's ranks, `squares` what
    its part adds to those of the norm, where anybody will ask for that. Both are on their way in
    one allreduce of a few words when this has been made; who reads them waits.
    """

    def __init__(
        self,
        inner: ReducedGradients,
        comm: Communicator,
        slot_share: float,
        squares: list[float] | None,
    ) -> None:
        self._inner, self._has_norm = inner, squares is not None
        self.is_agreed = inner.is_agreed
        *sums, stop = inner.slots  # who was told to stop is told to all
        own = [*(value * slot_share for value in sums), stop]
        self._num_slots = len(own)
        self._sums = np.array([*own, *(squares or ())], np.float64)
        self._request = comm.iallreduce(self._sums)
        self._factor = 1.0

    @property
    def slots(self) -> list[float]:
        self._request.wait()
        return [float(value) for value in self._sums[: self._num_slots]]

    def ready(self) -> bool:
        return self._request.test()

    def norm(self, counted: Counted = ()) -> float:
        assert self._has_norm, "the ranks have not been asked for their parts of the norm"
        assert not counted, "what counts in part is counted already"
        self._request.wait()
        return self._factor * root(sum(self._sums[self._num_slots :].tolist()))

    def scale(self, factor: float) -> None:
        self._inner.scale(factor)
        self._factor *= factor

    def roll_back(self) -> None:
        self._inner.roll_back()


def replicated_names(model: BlockModel, num_operator_ranks: int) -> list[str]:
    """The parameters, by name, that several ranks of the operator axis hold alike."""
    if num_operator_ranks == 1:
        return []
    shares = {name: share_of(parameter) for name, parameter in model.named_parameters()}
    return [name for name, share in shares.items() if share is None or share.num_copies > 1]


def _counted(
    model: BlockModel, num_operator_ranks: int, shared: SharedParameters | None
) -> Counted:
    """This rank's parameters, as ranges of its flat gradient, that count for less than once."""
    parameters = [parameter for parameter in model.parameters() if not parameter.is_meta]
    counted = []
    for parameter, where in zip(parameters, places(parameters), strict=True):
        share = share_of(parameter)
        count = 1 / (num_operator_ranks if share is None else share.num_copies)
        if shared is not None:
            count *= shared.counts.get(parameter, 1.0)
        if count < 1:
            counted.append((where, count))
    return counted
