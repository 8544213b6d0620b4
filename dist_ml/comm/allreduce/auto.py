"""Chooses a member of the family by message size, from times that were measured once on these nodes
and kept.

What is kept: seconds of each candidate at a few sizes, under the names of the hosts, the ranks on
each, the MPI and the wire. Between two sizes time is interpolated along the logarithms. Rank 0's
file decides for all ranks.
"""

import hashlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from dist_ml.comm.allreduce.base import Allreduce, Op
from dist_ml.comm.allreduce.wire import WireName
from dist_ml.comm.buffer import Tensor
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Words
from dist_ml.measure import cache
from dist_ml.measure.cost_model import interpolate

log = logging.getLogger(__name__)

SIZES_BYTES = (4096, 65_536, 1 << 20, 1 << 23)
# names the network where host names don't tell it apart (the emulated network's rates)
NETWORK_VARIABLE = "DIST_ML_NETWORK"
_REPEATS = 3

Table = dict[str, dict[str, float]]  # size in bytes -> candidate -> seconds
Make = Callable[[str], Allreduce]


class Auto(Allreduce):
    """Each call goes to the fastest candidate for its size. Words: that candidate's.

    `make(name)` makes a candidate over `comm`. The first use on new nodes measures for about a
    second; then nothing does.
    """

    name = "auto"

    def __init__(self, comm: Communicator, wire: WireName, make: Make) -> None:
        super().__init__(comm)
        nodes = comm.allgather_objects(_node_of(comm))
        names = candidates([nodes.count(node) for node in sorted(set(nodes))], wire)
        self._members = {name: make(name) for name in names}
        self.table = calibration(comm, nodes, wire, names, make)
        in_window = [name for name in names if name in ("shared_memory", "hierarchical")]
        self._chosen: dict[int, Allreduce] = {}  # by bytes, so that a call looks nothing up twice
        self._under_way: list[_InOrder] = []
        self._home = self._members[in_window[0] if in_window else names[0]]
        chosen = ", ".join(
            f"{choose(self.table, int(size))} at {int(size):,} bytes" for size in self.table
        )
        log.info("allreduce=auto: %s", chosen)

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        request = self.member(self.enter(x, op).nbytes).start(x, op)
        return request if request.test() else Request([_InOrder(request, self._under_way)], keep=x)

    def __call__(self, x: Tensor, op: Op = "sum") -> None:
        self.member(self.enter(x, op).nbytes)(x, op)

    def words(self, n: int, item_bytes: int = 4) -> Words:
        return self.member(item_bytes * n).words(n, item_bytes)

    def member(self, num_bytes: int) -> Allreduce:
        """The candidate that vectors of `num_bytes` go to."""
        member = self._chosen.get(num_bytes)
        if member is None:
            member = self._chosen[num_bytes] = self._members[choose(self.table, num_bytes)]
        return member

    def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        """In the node's shared memory where a candidate reduces there; the others take it from
        there as well.
        """
        return self._home.allocate(n, dtype)

    def free(self) -> None:
        for member in self._members.values():
            member.free()


class _InOrder:
    """A request of one member among those of all that are `under_way`, in the order in which they
    were started. Waiting for it ends those before it first: members don't move each other's, and
    another rank may wait for one of them before it comes to this one.
    """

    def __init__(self, request: Request, under_way: "list[_InOrder]") -> None:
        self._request, self._under_way, self.done = request, under_way, False
        under_way[:] = [*(other for other in under_way if not other.done), self]

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        self.done = self.done or self._request.test()
        return self.done

    def Wait(self) -> None:  # noqa: N802
        for other in tuple(self._under_way):
            if self.done:
                break
            other._request.wait()
            other.done = True


def candidates(ranks_per_node: list[int], wire: WireName) -> list[str]:
    """What is worth measuring on such nodes, the one whose memory all others can use first."""
    messages = ["ring", "rabenseifner"] + (["native"] if wire == "fp32" else [])
    if len(ranks_per_node) == 1:
        return ["shared_memory", *messages] if wire == "fp32" else ["shared_memory"]
    return ["hierarchical", *messages] if max(ranks_per_node) > 1 else messages


def choose(table: Mapping[str, Mapping[str, float]], num_bytes: int) -> str:
    """The candidate with the least time at `num_bytes`, between sizes along the logarithms, beyond
    them at the last one's.
    """
    names = next(iter(table.values()))
    by_name = {
        name: {int(size): seconds[name] for size, seconds in table.items()} for name in names
    }
    return min(names, key=lambda name: interpolate(by_name[name], num_bytes))


def calibration(
    comm: Communicator, nodes: list[str], wire: WireName, members: Sequence[str], make: Make
) -> Table:
    """What rank 0 has kept for these nodes, else measured now and kept. The same on all ranks;
    collective.
    """
    what = [comm.transport.flavour, *nodes, wire, os.environ.get(NETWORK_VARIABLE, ""), *members]
    name = "allreduce-" + hashlib.blake2b("|".join(what).encode(), digest_size=8).hexdigest()
    kept: Table | None = comm.broadcast_object(_loaded(name, members) if comm.rank == 0 else None)
    if kept is not None:
        return kept
    measured = {name: make(name) for name in members}
    table = measure(comm, measured)
    for member in measured.values():
        member.free()
    if comm.rank == 0:
        cache.store(name, {"what": what, "seconds": table})
    return table


def measure(comm: Communicator, members: Mapping[str, Allreduce]) -> Table:
    """The slowest rank's seconds, best of a few calls, by size and member. Collective."""
    table: Table = {}
    for size in SIZES_BYTES:
        times = torch.empty(len(members), dtype=torch.float64)
        for index, member in enumerate(members.values()):
            times[index] = _seconds(comm, member, size)
        comm.allreduce(times, "max")
        table[str(size)] = dict(zip(members, times.tolist(), strict=True))
    return table


def _seconds(comm: Communicator, member: Allreduce, num_bytes: int) -> float:
    x = member.allocate(num_bytes // 4, torch.float32).mul_(0.0)
    member(x)
    best = math.inf
    for _ in range(_REPEATS):
        comm.barrier()
        start = time.perf_counter()
        member(x)
        best = min(best, time.perf_counter() - start)
    return best


def _loaded(name: str, members: Sequence[str]) -> Table | None:
    """What is kept under `name`; None unless it has a positive time for every size and member."""
    kept = (cache.load(name) or {}).get("seconds")
    try:
        table = {
            str(size): {member: kept[str(size)][member] for member in members}  # type: ignore[index]
            for size in SIZES_BYTES
        }
    except (TypeError, KeyError):  # of another form
        return None
    times = [seconds for by_member in table.values() for seconds in by_member.values()]
    whole = all(isinstance(seconds, float) and seconds > 0 for seconds in times)
    return table if whole else None


def _node_of(comm: Communicator) -> str:
    """The name of this node: its host's, and the rank of its first rank, since hosts may share a
    name.
    """
    node = comm.split_by_node()
    first = node.broadcast_object(comm.rank)
    node.free()
    return f"{socket.gethostname()}-{first}"
