"""The members of the family by name, and how one is made."""

from collections.abc import Callable

from dist_ml.comm.allreduce.auto import Auto
from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.allreduce.hierarchical import Hierarchical
from dist_ml.comm.allreduce.native import Native
from dist_ml.comm.allreduce.rabenseifner import Rabenseifner
from dist_ml.comm.allreduce.ring import Ring
from dist_ml.comm.allreduce.shared_memory import SharedMemory
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError

Maker = Callable[[Communicator, WireName], Allreduce]

ALLREDUCES: dict[str, Maker] = {
    "native": Native,
    "ring": Ring,
    "rabenseifner": Rabenseifner,
    "shared_memory": SharedMemory,
    "hierarchical": Hierarchical,
    "auto": lambda comm, wire: Auto(comm, wire, lambda name: make(name, comm, wire)),
}


def make(name: str, comm: Communicator, wire: WireName = "fp32") -> Allreduce:
    """The algorithm called `name` over `comm`. Collective. `ConfigError` for an unknown name, or
    one that can't work here.
    """
    if name not in ALLREDUCES:
        raise ConfigError(f"allreduce={name} is not one of {', '.join(ALLREDUCES)}")
    Wire(wire)
    return ALLREDUCES[name](comm, wire)
