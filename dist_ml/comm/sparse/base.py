"""What every sparse allreduce is given, what it returns, and the messages they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.sparse.entries import Entries, check_length, concatenate
from dist_ml.comm.sparse.entry_format import EntryFormat, make_entry_format
from dist_ml.comm.sparse.gathering import allgather_messages

TAG = 31_000


@dataclass(frozen=True)
class Settings:
    """How entries are written, and how often the variants with a memory renew what they
    remember.
    """

    dtype: str = "float32"  # of the values that are summed
    values: str = "plain"  # plain, or coded indices with fp32, bf16 or int4 values
    # of the dense half: 2, 4 or 8 bits; 0 sends it as it is
    qsgd_bits: int = 0
    repartition_steps: int = 64  # between new boundaries of the regions
    threshold_steps: int = 32  # between exact global thresholds
    seed: int = 0  # of QSGD's coin flips


@dataclass(frozen=True)
class SparseSum:
    """The sum over ranks, the same on all of them: `entries`, or `dense` where that is the smaller
    form.

    `returned` is what this rank's share of the sum lacks: the sum of all ranks' inputs is the
    result plus all ranks' returned entries. Whoever remembers (the residual) adds them back.
    """

    entries: Entries | None
    dense: Array | None = None
    returned: list[Entries] = field(default_factory=list)

    def nonzeros(self) -> int:
        """The number of elements that the result holds."""
        if self.entries is not None:
            return self.entries.size
        assert self.dense is not None
        return int(np.count_nonzero(self.dense))

    def to_dense(self, length: int) -> Array:
        """The whole vector."""
        if self.dense is not None:
            return self.dense
        assert self.entries is not None
        return self.entries.dense(length)


class SparseAllreduce(Protocol):
    """Sums sparse vectors of `length` elements over the ranks of a group.

    `reduce` is collective: every rank passes its own entries, any number of them, and the k that
    all agreed on. `state_dict` is what the next calls depend on; {} for variants without a memory.
    """

    def reduce(self, own: Entries, k: int) -> SparseSum: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """The parts that variants without a memory share."""

    def __init__(self, comm: Communicator, length: int, settings: Settings | None = None) -> None:
        check_length(length)
        self.comm = comm
        self.length = length
        self.settings = settings or Settings()
        self.entry_format: EntryFormat = make_entry_format(
            self.settings.dtype, self.settings.values
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, f"this exchange has no state, but got {list(state)}"


def send(comm: Communicator, message: Array, destination: int) -> Request:
    """Begin to send a message whose size the receiver does not know."""
    return comm.isend(message, destination, TAG)


def receive(comm: Communicator, source: int, dtype: str = "int32") -> Array:
    return comm.receive_message(dtype, source, TAG)


def gather_sizes(comm: Communicator, size: int) -> list[int]:
    """Every rank's size. Words: P - 1."""
    sizes = np.empty(comm.size, np.int64)
    comm.allgather(np.array([size], np.int64), sizes)
    return [int(size) for size in sizes]


def allgather_regions(
    comm: Communicator, entry_format: EntryFormat, region: Entries
) -> tuple[Entries, Entries]:
    """Consecutive regions of all ranks, concatenated, and what rounding lost of this rank's."""
    encoded = entry_format.encode(region)
    messages = allgather_messages(comm, encoded.message)
    return concatenate([entry_format.decode(message) for message in messages]), encoded.lost


def split_to_owners(
    comm: Communicator, entry_format: EntryFormat, pieces: Sequence[Entries]
) -> tuple[list[Entries], Entries, list[Entries]]:
    """Send pieces[i] to rank i; return all ranks' pieces for this rank, in rank order, own ones as
    received, and what was lost.

    Destinations are rotated: in step s, rank r sends to r + s and receives from r - s, so that no
    rank is the target of two at once (Ok-Topk, PPoPP 2022, section 3.1.1). P - 1 messages; words:
    all pieces but one's own.
    """
    rank, size = comm.rank, comm.size
    requests, lost = [], []
    arrived = {rank: pieces[rank]}
    sent = list(pieces)
    for step in range(1, size):
        destination = (rank + step) % size
        encoded = entry_format.encode(pieces[destination])
        requests.append(send(comm, encoded.message, destination))
        sent[destination] = encoded.sent
        lost.append(encoded.lost)
    for step in range(1, size):
        source = (rank - step) % size
        arrived[source] = entry_format.decode(receive(comm, source))
    for request in requests:
        request.wait()
    return [arrived[source] for source in range(size)], concatenate(sent), lost
