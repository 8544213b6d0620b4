"""What all members of the allreduce family have in common, and how one that is made of steps is
run.

An algorithm made of messages is a generator: it yields each request that must complete before it
can go on. Waiting for them one by one makes the blocking call; testing the current one makes the
call that overlaps; neither appears in the algorithm.
"""

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch

from dist_ml.comm.allreduce.generator_request import GeneratorRequest, Steps
from dist_ml.comm.buffer import Array, Tensor, as_buffer
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Words
from dist_ml.errors import CommunicationError
from dist_ml.flight.recorder import Record

Op: TypeAlias = Literal["sum", "mean"]

FIRST_TAG, NUM_TAGS = (
    16_384,
    8_192,
)  # kept for this family on any communicator; every MPI allows tags up to 32767
TAG_BLOCK = 32_768  # and where it allows more, the same of each block

_DTYPES = ("float32", "float64")


class Allreduce(ABC):
    """Reduces tensors in place over `comm`: sum or mean, the same bits on all ranks, deterministic
    for a fixed layout of ranks.

    float32 and float64, contiguous, in host memory, the same number of elements on all ranks.
    `name` is the entry's in `ALLREDUCES` and in the traffic ledger.
    """

    name = ""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._started = 0
        self._tag_blocks = max(1, (comm.transport.largest_tag + 1) // TAG_BLOCK)
        self._call = f"allreduce by {self.name}"

    def __call__(self, x: Tensor, op: Op = "sum") -> None:
        """Reduce `x` in place."""
        self.start(x, op).wait()

    @abstractmethod
    def start(self, x: Tensor, op: Op = "sum") -> Request:
        """Reduce `x` in place, completed by the returned request; `x` belongs to it until then.

        Several may be under way; all ranks start them in the same order, and may end them in any.
        It moves when it is tested or waited for.
        """

    @abstractmethod
    def words(self, n: int, item_bytes: int = 4) -> Words:
        """What this rank moves to reduce n elements of `item_bytes`: exactly what the traffic
        ledger shows afterwards.
        """

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """A vector of n zeros where this algorithm reduces it fastest. Collective. It lives until
        `free`.
        """
        return torch.zeros(n, dtype=dtype)

    def free(self) -> None:  # noqa: B027 - most hold nothing
        """Give memory and communicators back. Collective."""

    def next_tag(self, n: int) -> int:
        """A tag of its own for each of the many that may be under way: ranks may get on with them
        in different orders. It depends on the number of elements, too, so that ranks in different
        calls wait for each other, and the watchdog says so: longer messages than expected were
        seen to overwrite Open MPI's memory.
        """
        self._started += 1
        return TAG_BLOCK * (n % self._tag_blocks) + FIRST_TAG + self._started % NUM_TAGS

    def enter(self, x: Tensor, op: Op) -> Array:
        """Check one call (with the other ranks' too, in checked mode) and return the flat view of
        `x`.
        """
        buffer = as_buffer(x)
        if buffer.dtype not in _DTYPES:
            raise CommunicationError(
                f"allreduce={self.name} takes float32 and float64, not {buffer.dtype}; use "
                "allreduce=native"
            )
        if op not in ("sum", "mean"):
            raise CommunicationError(
                f"allreduce={self.name} takes op=sum or mean, not {op}; use allreduce=native"
            )
        self.comm.compare_calls(f"allreduce {op} by {self.name}", buffer.dtype, buffer.array.size)
        return buffer.array

    def record(self, n: int, item_bytes: int, op: Op) -> Record:
        """Enter the call in the flight recorder, as one collective beside its messages."""
        dtype = "float32" if item_bytes == 4 else "float64"
        return self.comm.calls.collective(self._call, dtype, n, op)


class MessageAllreduce(Allreduce):
    """A member of the family that is made of messages: it only says what they are."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__(comm)
        self._under_way: list[GeneratorRequest] = []

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        array = self.enter(x, op)
        if self.comm.size == 1 or array.size == 0:
            return Request()
        record = self.record(array.size, array.itemsize, op)
        steps = self.steps(array, op, self.next_tag(array.size))
        request = GeneratorRequest(steps, self.comm, self.name, self._under_way)
        request.Test()
        return Request([request], keep=x).recorded(record)

    @abstractmethod
    def steps(self, array: Array, op: Op, tag: int) -> Steps:
        """The algorithm, on the flat view of the caller's tensor; all its messages carry `tag`."""
