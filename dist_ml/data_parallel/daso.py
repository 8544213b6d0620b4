"""DASO (Coquelin et al., "Accelerating neural network training with distributed asynchronous and
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
cool-down begins: nodes must not end a run with different momenta.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.config.allreduce import DataParallelConfig
from dist_ml.data_parallel.averagers import ParameterAverager
from dist_ml.data_parallel.drivers import drain
from dist_ml.data_parallel.flat_parameters import FlatParameters
from dist_ml.data_parallel.flat_state import FlatState, Rows
from dist_ml.data_parallel.plateau import Plateau
from dist_ml.partition import Range


class DasoAverager(ParameterAverager):
    """Exchanges parameters of `num_nodes` nodes on a thread.

    `num_steps` is the length of the run, of which the last `cooldown_steps` are blocking.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        allreduce: Allreduce,
        config: DataParallelConfig,
        num_nodes: int,
        num_steps: int,
    ) -> None:
        super().__init__(parameters, optimizer, allreduce)
        self.period = config.period
        self._config = config
        self._num_nodes = num_nodes
        comm = allreduce.comm
        node = comm.rank * num_nodes // comm.size  # ranks are ordered by node
        self.rows = Rows(node, num_nodes, "mean")
        # all ranks end with the same parameters
        self._cooldown_from = num_steps - max(1, config.cooldown_steps)
        self._sent = allreduce.allocate(parameters.flat.numel(), parameters.flat.dtype)
        self._thread = ThreadPoolExecutor(1, "parameter-exchange")
        self._in_flight: Future[None] | None = None
        self._drain_soon = threading.Event()
        self._waited = 0
        self._plateau = Plateau(config.plateau_steps)

    def after_update(self, loss: float) -> None:
        self.steps += 1
        if self.steps <= self._config.warmup_steps or self.steps > self._cooldown_from:
            self._blocking()
            return
        if self._plateau.reached(loss):
            self.period = max(1, self.period // 2)
        self._waited += 1
        if self._in_flight is None:
            self._send()
        elif self._waited >= self.period:
            self._merge()
            self._send()

    def diagnostics(self) -> dict[str, float]:
        return {"period": float(self.period)}

    def tensors(self) -> list[FlatState]:
        """The mean of the parameters under way, which are waited for: the same on all ranks."""
        if self._in_flight is None:
            return []
        self._wait()
        return [FlatState("arrived/{}", Range(0, self._sent.numel()), self._sent)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "period": self.period,
            "waited": self._waited,
            "in_flight": self._in_flight is not None,
            "plateau": self._plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._in_flight is not None:
            self._wait()
            self._in_flight = None
        self.steps, self.period = state["steps"], state["period"]
        self._waited = state["waited"]
        self._plateau.load_state_dict(state["plateau"])
        if state["in_flight"]:
            self._in_flight = Future()
            self._in_flight.set_result(None)

    def close(self) -> None:
        """The parameters under way are merged; the thread ends."""
        if self._in_flight is not None:
            self._merge()
        self._thread.shutdown()
        super().close()

    def _blocking(self) -> None:
        if self._in_flight is not None:
            self._merge()
        self.average()
        if self.steps == self._cooldown_from + 1:
            self.average_state()

    def _send(self) -> None:
        """Let the parameters as they are now go around while training goes on."""
        self._sent.copy_(self._parameters.flat)
        self._waited = 0
        self._drain_soon.clear()
        self._in_flight = self._thread.submit(
            lambda: drain(
                deque([self._allreduce.start(self._sent, "mean")]),
                self._drain_soon,
                self._allreduce.comm.transport.peers,
            )
        )

    def _wait(self) -> None:
        assert self._in_flight is not None
        self._drain_soon.set()
        self._in_flight.result()

    def _merge(self) -> None:
        """Blend the parameters that were sent S steps ago with those of today. The mean over all
        ranks is that over the nodes.
        """
        self._wait()
        self._in_flight = None
        local, nodes = 2.0 * self._waited, float(self._num_nodes)
        merged = self._parameters.flat.mul_(local / (local + nodes))
        merged.add_(self._sent, alpha=nodes / (local + nodes))
