"""The members of the family by name, and how one is made."""

from collections.abc import Callable
from typing import NamedTuple

from dist_ml.comm.allreduce.auto import Auto
from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.allreduce.hierarchical import Hierarchical
from dist_ml.comm.allreduce.native import Native
from dist_ml.comm.allreduce.rabenseifner import Rabenseifner
from dist_ml.comm.allreduce.ring import Ring
from dist_ml.comm.allreduce.shared_memory import SharedMemory
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.communicator import Communicator
from dist_ml.config.names import require_one_of

Maker = Callable[[Communicator, WireName], Allreduce]


class Member(NamedTuple):
    """How an allreduce is made, and which of `wire` and the like it reads."""

    make: Maker
    reads: tuple[str, ...] = ("wire",)


# A new allreduce is a module and an entry here.
ALLREDUCES: dict[str, Member] = {
    "native": Member(Native, reads=()),
    "ring": Member(Ring),
    "rabenseifner": Member(Rabenseifner),
    "shared_memory": Member(SharedMemory, reads=()),
    "hierarchical": Member(Hierarchical),
    "auto": Member(lambda comm, wire: Auto(comm, wire, lambda name: make(name, comm, wire))),
}


def make(name: str, comm: Communicator, wire: WireName = "fp32") -> Allreduce:
    """The algorithm called `name` over `comm`. Collective. `ConfigError` for an unknown name, or
    one that can't work here.
    """
    require_one_of("allreduce.name", name, ALLREDUCES)
    Wire(wire)
    return ALLREDUCES[name].make(comm, wire)
