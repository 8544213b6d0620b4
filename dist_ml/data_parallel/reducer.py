"""The seam between the trainer and gradient exchange: what is to be summed over the data axis, and when it may start."""

from typing import Any, Protocol

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.gradients import FlatGradients


class GradientReducer(Protocol):
    """Turns each rank's gradients into their sum over the data axis.

    The trainer calls `start` before the step's last backward pass, in which gradients become final one after the other and may be
    sent at once, and `finish` after it, which returns when the whole buffer, tail included, holds the sum on all ranks.
    `diagnostics` are figures of the last step for the metrics; {} for none.
    `state_dict` is whatever a checkpoint must carry for the next steps to be the same (residuals, thresholds); {} for none.
    """

    def start(self) -> None: ...
    def finish(self) -> None: ...
    def diagnostics(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BlockingReducer:
    """One allreduce of the whole buffer, after the backward pass. Words: 2n(P-1)/P, messages as the MPI library likes."""

    def __init__(self, gradients: FlatGradients, comm: Communicator) -> None:
        self._gradients = gradients
        self._comm = comm

    def start(self) -> None:
        """Nothing is sent before the backward pass is over."""

    def finish(self) -> None:
        self._comm.allreduce(self._gradients.buffer)

    def diagnostics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, f"a blocking reducer has no state, but got {list(state)}"
