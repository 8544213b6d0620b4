"""Runs an algorithm that is written as a generator of the requests it waits for."""

from collections.abc import Iterator
from typing import TypeAlias

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request

Steps: TypeAlias = Iterator[Request]


class GeneratorRequest:
    """Runs `steps`, entering their messages in the ledger under `label`."""

    def __init__(self, steps: Steps, comm: Communicator, label: str) -> None:
        self._steps = steps
        self._comm = comm
        self._label = label
        self._current: Request | None = Request()

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        """Go on as far as possible without waiting; true at the end."""
        while self._current is not None and self._current.test():
            self._advance()
        return self._current is None

    def Wait(self) -> None:  # noqa: N802
        """Go on to the end."""
        with self._comm.traffic.timed(self._comm.axis, self._label):
            while self._current is not None:
                self._current.wait()
                self._advance()

    def _advance(self) -> None:
        with self._comm.traffic.labelled(self._label):
            self._current = next(self._steps, None)
