"""The traffic ledger: words, messages, bytes and seconds of this rank, by mesh axis and collective.

A word is one element of the buffer that was communicated. Point-to-point messages are counted as
they are. What an MPI library does inside its own collectives can't be seen, so those are counted as
their direct algorithm, in which each rank sends every other rank exactly what that one needs: the
fewest words that are possible, exact for uneven shares, and conserved (the words sent by all ranks
are the words received by all ranks). With n elements over P ranks and own = this rank's share:

| collective      | words sent                | words received            | messages  |
|-----------------|---------------------------|---------------------------|-----------|
| allreduce       | n - own + own (P - 1)     | own (P - 1) + n - own     | 2 (P - 1) |
| reduce_scatter  | n - own                   | own (P - 1)               | P - 1     |
| allgather       | own (P - 1)               | n - own                   | P - 1     |
| alltoall        | n_send - kept             | n_received - kept         | non-empty |
| broadcast       | n (P - 1) at the root     | n elsewhere               | P - 1 at the root |
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import NamedTuple

_UNTIMED = nullcontext()


class Words(NamedTuple):
    """What one call moves over this rank's boundary: words out, words in, messages out."""

    sent: int
    received: int
    messages: int


@dataclass(slots=True)
class Tally:
    """Totals of one (axis, collective)."""

    calls: int = 0
    words_sent: int = 0
    words_received: int = 0
    messages: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0

    def minus(self, earlier: "Tally") -> "Tally":
        return Tally(
            **{name: value - getattr(earlier, name) for name, value in asdict(self).items()}
        )

    def add(self, other: "Tally") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Traffic:
    """The ledger of one rank; one object is shared by all communicators that are split from one
    world.

    Counting is always on (about a microsecond a call). Seconds are only taken when `timing` is set.
    """

    def __init__(self, timing: bool = False) -> None:
        self.timing = timing
        # Each thread counts by itself, under its own label: an exchange that goes on during the
        # backward pass neither waits for the main thread nor loses its counts.
        self._local = threading.local()
        self._of_threads: list[dict[tuple[str, str], Tally]] = []

    def count(self, axis: str, collective: str, words: Words, word_bytes: int) -> None:
        """Enter one call. Inside `labelled` it is entered under the label instead of
        `collective`.
        """
        key = (axis, self.label or collective)
        tallies = self._own()
        tally = tallies.get(key)
        if tally is None:
            tally = tallies[key] = Tally()
        tally.calls += 1
        tally.words_sent += words[0]
        tally.words_received += words[1]
        tally.messages += words[2]
        tally.bytes_sent += words[0] * word_bytes

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Enter all calls inside under `label`: an algorithm made of point-to-point messages shows
        as one collective.
        """
        outer = self.label
        self._local.label = outer or label
        try:
            yield
        finally:
            self._local.label = outer

    @property
    def label(self) -> str | None:
        """What this thread's calls are entered under, if not under their own names."""
        label: str | None = getattr(self._local, "label", None)
        return label

    def timed(self, axis: str, collective: str) -> AbstractContextManager[None]:
        """Add the seconds spent inside, when timing is on."""
        return self._timed(axis, collective) if self.timing else _UNTIMED

    @contextmanager
    def _timed(self, axis: str, collective: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            key = (axis, self.label or collective)
            self._own().setdefault(key, Tally()).seconds += time.perf_counter() - start

    def snapshot(self) -> dict[tuple[str, str], Tally]:
        """A copy of all tallies by (axis, collective)."""
        merged: dict[tuple[str, str], Tally] = {}
        for tallies in list(self._of_threads):
            for key, tally in tallies.copy().items():
                merged.setdefault(key, Tally()).add(tally)
        return merged

    def since(self, earlier: dict[tuple[str, str], Tally]) -> dict[tuple[str, str], Tally]:
        """What was entered after the `earlier` snapshot was taken."""
        now = self.snapshot()
        changed = {key: tally.minus(earlier.get(key, Tally())) for key, tally in now.items()}
        return {key: tally for key, tally in changed.items() if tally.calls}

    def total(self) -> Tally:
        """The sum over all axes and collectives."""
        total = Tally()
        for tally in self.snapshot().values():
            total.add(tally)
        return total

    def reset(self) -> None:
        for tallies in self._of_threads:
            tallies.clear()

    def _own(self) -> dict[tuple[str, str], Tally]:
        tallies: dict[tuple[str, str], Tally] | None = getattr(self._local, "tallies", None)
        if tallies is None:
            tallies = self._local.tallies = {}
            self._of_threads.append(tallies)
        return tallies


def allreduce_words(n: int, own: int, size: int) -> Words:
    return Words(n - own + own * (size - 1), n - own + own * (size - 1), 2 * (size - 1))


def reduce_scatter_words(n: int, own: int, size: int) -> Words:
    return Words(n - own, own * (size - 1), size - 1)


def allgather_words(n: int, own: int, size: int) -> Words:
    return Words(own * (size - 1), n - own, size - 1)


def alltoall_words(send_counts: Sequence[int], receive_counts: Sequence[int], rank: int) -> Words:
    messages = sum(
        count > 0 for destination, count in enumerate(send_counts) if destination != rank
    )
    return Words(
        sum(send_counts) - send_counts[rank], sum(receive_counts) - receive_counts[rank], messages
    )


def broadcast_words(n: int, root: int, rank: int, size: int) -> Words:
    return Words(n * (size - 1), 0, size - 1) if rank == root else Words(0, n, 0)
