"""Local steps: ranks take optimizer steps of their own and agree on parameters now and then,
instead of on every gradient.

Periodic averaging (local SGD; Stich, ICLR 2019, algorithm 1): every `period` steps all parameters
are averaged, and waited for.

DASO (Coquelin et al., "Accelerating neural network training with distributed asynchronous and
selective optimization", J. Big Data 9, 2022, section 3): inside a node gradients are summed every
step, so its ranks stay equal. Between nodes, every S steps the parameters are sent without waiting,
and S steps later the old ones that arrived are merged with those trained meanwhile:

    step     0 ............. S ............. 2S
    send     x(0) ---------> merge, send x(S) ------> ...

    x = (2 S x_local + sum of the P nodes' x_old) / (2 S + P)

The first and last steps average in blocking fashion, every step. S is halved when the mean loss no
longer falls. Where the paper lets one rank of each node take its turn to talk, here all of them
carry their share of the wire (`allreduce.hierarchical`).

Optimizer state stays with the rank that made it, as in the paper, and is averaged once, when the
cool-down begins, and with every blocking average of `Periodic`: nodes must not end a run with
different momenta.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import DataParallelConfig
from dist_ml.data_parallel.dense_reducer import finish_behind
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.sharded import FlatParameters

_PLATEAU_FALL = 0.01  # relative fall of the mean loss below which it counts as a plateau


class Averaging:
    """What both kinds share: gradients stay inside `near`; every step two words, loss and correct
    samples, cross all of `comm`.

    The trainer scales each rank's gradient for a sum over all ranks, so the sum over `near` alone
    is scaled up to match.
    """

    def __init__(
        self,
        gradients: FlatGradients,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        comm: Communicator,
        near: Allreduce | None,
        far: Allreduce,
    ) -> None:
        self._gradients = gradients
        self._parameters = parameters
        self._optimizer = optimizer
        self._comm = comm
        self._near = near
        self._far = far
        self._loss = 0.0
        self.steps = 0
        optimizer.register_step_post_hook(lambda *_: self.after_update())

    def start(self) -> None:
        """Gradients are exchanged after the backward pass."""

    def finish(self) -> None:
        size = 1
        if self._near is not None:
            self._near(self._gradients.flat)
            size = self._near.comm.size
        self._gradients.flat.mul_(self._comm.size / size)
        self._comm.allreduce(self._gradients.tail)
        self._loss = float(self._gradients.tail[0])

    def after_update(self) -> None:
        """Called after each optimizer step."""
        raise AssertionError("one of the two kinds")

    def average(self) -> None:
        """All ranks' parameters become their mean. Words: the algorithm's for n."""
        self._far(self._parameters.flat, "mean")

    def average_state(self) -> None:
        """The optimizer's state likewise, tensor by tensor."""
        for state in self._optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 0:
                    self._far(value, "mean")

    def diagnostics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Periodic(Averaging):
    """Local SGD: the naive reference of DASO."""

    def __init__(self, *arguments: Any, config: DataParallelConfig) -> None:
        super().__init__(*arguments)
        self._period = config.period

    def after_update(self) -> None:
        self.steps += 1
        if self.steps % self._period == 0:
            self.average()
            self.average_state()


class Daso(Averaging):
    """Exchanges parameters on a thread, over `far`, whose communicator nobody else uses.

    `num_steps` is the length of the run, of which the last `cooldown_steps` are blocking.
    """

    def __init__(self, *arguments: Any, config: DataParallelConfig, num_steps: int) -> None:
        super().__init__(*arguments)
        self.period = config.period
        self._config = config
        self._cooldown_from = num_steps - max(
            1, config.cooldown_steps
        )  # all ranks end with the same parameters
        assert self._near is not None
        self._num_nodes = self._comm.size // self._near.comm.size
        self._sent = self._far.allocate(self._parameters.flat.numel(), self._parameters.flat.dtype)
        self._thread = ThreadPoolExecutor(1, "parameter-exchange")
        self._flight: Future[None] | None = None
        self._hurry = threading.Event()
        self._waited = 0
        self._plateau = Plateau(config.plateau_steps)

    def after_update(self) -> None:
        self.steps += 1
        if self.steps <= self._config.warmup_steps or self.steps > self._cooldown_from:
            self._blocking()
            return
        if self._plateau.reached(self._loss):
            self.period = max(1, self.period // 2)
        self._waited += 1
        if self._flight is None:
            self._send()
        elif self._waited >= self.period:
            self._merge()
            self._send()

    def diagnostics(self) -> dict[str, float]:
        return {"period": float(self.period)}

    def close(self) -> None:
        """Wait for what is under way, so that a run may end before its last step. Collective."""
        if self._flight is not None:
            self._merge()

    def _blocking(self) -> None:
        if self._flight is not None:
            self._merge()
        self.average()
        if self.steps == self._cooldown_from + 1:
            self.average_state()

    def _send(self) -> None:
        """Let the parameters as they are now go around while training goes on."""
        self._sent.copy_(self._parameters.flat)
        self._waited = 0
        self._hurry.clear()
        self._flight = self._thread.submit(
            lambda: finish_behind(deque([self._far.start(self._sent, "mean")]), self._hurry)
        )

    def _merge(self) -> None:
        """Blend the parameters that were sent S steps ago with those of today. The mean over all
        ranks is that over the nodes.
        """
        assert self._flight is not None
        self._hurry.set()
        self._flight.result()
        self._flight = None
        local, nodes = 2.0 * self._waited, float(self._num_nodes)
        self._parameters.flat.mul_(local / (local + nodes)).add_(
            self._sent, alpha=nodes / (local + nodes)
        )


class Plateau:
    """Tells, every `window` steps, whether the mean loss has fallen by less than a hundredth since
    the window before.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._losses: list[float] = []
        self._before: float | None = None

    def reached(self, loss: float) -> bool:
        """One step's loss, the same on all ranks."""
        self._losses.append(loss)
        if self._window == 0 or len(self._losses) < self._window:
            return False
        mean = sum(self._losses) / len(self._losses)
        before, self._before, self._losses = self._before, mean, []
        return before is not None and mean > before * (1 - _PLATEAU_FALL)
