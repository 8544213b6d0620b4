"""Runs an algorithm that is written as a generator of the requests it waits for."""

from collections.abc import Iterator
from typing import TypeAlias

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request

Steps: TypeAlias = Iterator[Request]


class GeneratorRequest:
    """Runs `steps`, entering their messages in the ledger under `label`.

    `under_way` are the requests of the same group that haven't ended, in the order in which they
    were started; this one joins them. Waiting for it ends those before it first: nothing else moves
    them, and another rank may wait for one of them before it comes to this one.
    """

    def __init__(
        self,
        steps: Steps,
        comm: Communicator,
        label: str,
        under_way: "list[GeneratorRequest] | None" = None,
    ) -> None:
        self._steps = steps
        self._under_way = under_way if under_way is not None else []
        self._under_way[:] = [*(other for other in self._under_way if not other.done), self]
        self._comm = comm
        self._label = label
        self._current: Request | None = Request()

    @property
    def done(self) -> bool:
        """Has it come to its end?"""
        return self._current is None

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        """Go on as far as possible without waiting; true at the end."""
        while self._current is not None and self._current.test():
            self._advance()
        return self._current is None

    def Wait(self) -> None:  # noqa: N802
        """Go on to the end."""
        for request in tuple(self._under_way):
            if self.done:
                break
            request._end()

    def _end(self) -> None:
        with self._comm.traffic.timed(self._comm.axis, self._label):
            while self._current is not None:
                self._current.wait()
                self._advance()

    def _advance(self) -> None:
        with self._comm.traffic.labelled(self._label):
            self._current = next(self._steps, None)
