"""A handle on communication that goes on while the rank computes."""

from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any, Protocol

from dist_ml.flight.recorder import ENDED, WAITED, Record


class Pending(Protocol):
    """What a transport's own request can do."""

    def Test(self) -> bool: ...  # noqa: N802 - MPI's own spelling
    def Wait(self) -> Any: ...  # noqa: N802


class Request:
    """Completes when `wait` returns or `test` is true; until then the buffers belong to the
    communication.

    It keeps its buffers alive, and `finish` (narrowing a widened sum, say) runs once, on
    completion. MPI makes no progress by itself: a request that nobody tests moves little before
    `wait`.
    """

    __slots__ = ("_finish", "_keep", "_pending", "_record")

    def __init__(
        self,
        pending: Sequence[Pending] = (),
        keep: Any = None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._pending = list(pending)
        self._keep = keep
        self._finish = finish
        self._record: Record | None = None

    def test(self) -> bool:
        """Give MPI a chance to progress; true once everything has completed."""
        while self._pending and self._pending[0].Test():
            self._pending.pop(0)
        if not self._pending:
            self._complete()
        return not self._pending

    def wait(self) -> None:
        """Block until everything has completed."""
        self.is_awaited()
        for pending in self._pending:
            pending.Wait()
        self._pending.clear()
        self._complete()

    def is_awaited(self) -> None:
        """Note in the flight recorder that nothing else is left to do, though `test` is called and
        not `wait`.
        """
        if self._record is not None and not self._record[WAITED]:
            self._record[WAITED] = monotonic_ns()

    def recorded(self, record: Record) -> "Request":
        """This request, which notes in the flight recorder when it is waited for and completes."""
        record[WAITED] = 0
        self._record = record
        return self

    def then(self, finish: Callable[[], Any]) -> "Request":
        """This request, with `finish` to run on completion, after what was to run already."""
        earlier = self._finish

        def both() -> None:
            if earlier is not None:
                earlier()
            finish()

        self._finish = both
        return self

    def _complete(self) -> None:
        finish, self._finish, self._keep = self._finish, None, None
        if finish is not None:
            finish()
        if self._record is not None:
            self._record[ENDED] = monotonic_ns()
            self._record = None
