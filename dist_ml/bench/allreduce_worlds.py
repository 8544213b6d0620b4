"""The kinds of worlds that `dist-ml bench allreduce` starts in the emulated network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_ml.bench.allreduce_checks import AS_IT_COMES, TUNED
from dist_ml.bench.candidates import GLOO, RAW

_AS_IT_COMES = {  # the MPIs' own choices, but kept on the shaped network
    "mpich": {"MPIR_CVAR_CH4_NETMOD": "ucx"},
    "openmpi": {"OMPI_MCA_btl_tcp_flags": "send,put,inplace,need-ack,need-csum,hetero-rdma"},
}


@dataclass(frozen=True)
class World:
    """One kind of world and what it measures."""

    mpi: str
    setting: str
    candidates: Sequence[str]
    environment: Mapping[str, str]


def emulated_worlds(mpi: str, crowded: bool) -> list[World]:
    """Ours and theirs as the emulated network sets MPI up, then theirs as it comes. Gloo is
    measured once, beside MPICH.
    """
    ours = ("hierarchical",) if crowded else ("ring", "rabenseifner")
    gloo = (GLOO,) if mpi == "mpich" else ()
    environment = {"GLOO_SOCKET_IFNAME": "eth0"}
    return [
        World(mpi, TUNED, (*ours, RAW, *gloo), environment),
        World(mpi, AS_IT_COMES, (RAW,), {**environment, **_AS_IT_COMES.get(mpi, {})}),
    ]
