"""Going on without ranks that have died: ULFM, which Open MPI has where its `mpiexec` was told so.

    any rank      finds that another has died; revokes all communicators
    the others    are thrown out of whatever they wait in
    all           agree: not every rank is well; shrink; have a world of their own

Ranks agree once a step, after its sums and before anybody uses them: then all use them or none
does, and after a death all stand at the same step's border. A rank that fails
elsewhere agrees before it shrinks, because others may be waiting for it at the next step's.
"""

import contextlib
import logging
import os
import sys
from time import monotonic
from typing import Any

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mpi import load
from dist_ml.comm.mpi_transport import MpiTransport
from dist_ml.comm.peer_monitor import Peer, death_soon, this_process
from dist_ml.errors import MachineError, PeerLostError

_MPI = "Open MPI"
_ENABLED = "OMPI_MCA_mpi_ft_enable"  # set by `mpiexec --with-ft ulfm` in its ranks
_LOST = "a rank of this node died; the others go on without it"


class Survivors:
    """Keeps `world` going: `shrink` makes it one of the ranks that live, in place. `MachineError`
    where MPI can't do that. Collective.
    """

    def __init__(self, world: Communicator) -> None:
        _require_ulfm(world)
        self._mpi = load()
        self.world = world
        self._transport.family.survives = True
        self.lost: list[Peer] = []  # with their ranks in the world that they were lost from

    def agree(self) -> None:
        """All ranks are alive and here, or `PeerLostError` is raised on all. Collective.

        Cost: two short messages up and down a tree of the ranks, 20 to 80 µs for 4 on 2 cores.
        """
        transport = self._transport
        transport.blocked_since = monotonic()
        is_well = self._agree(transport.comm, True)
        transport.blocked_since = 0.0
        if not is_well:
            raise _agreed_loss()

    def explain(self, error: BaseException) -> bool:
        """Does this error come of a rank's death?"""
        if isinstance(error, PeerLostError):
            return True
        return (
            isinstance(error, RuntimeError) and death_soon(self.world.transport.peers) is not None
        )

    def shrink(self, error: BaseException) -> None:
        """After `error`: leave the dead out of the world, whose ranks are numbered anew in their
        order. Groups and shared memory of the former one are of no use any more; to free them does
        nothing. Collective over the ranks that live.
        """
        transport = self._transport
        comm, peers = transport.comm, transport.peers
        transport.family.give_up(self._mpi.COMM_NULL)
        transport.blocked_since = monotonic()  # the watch's limit holds here, too
        if not (isinstance(error, PeerLostError) and error.agreed):
            self._agree(comm, False)
        comm, living = self._shrink(comm)
        transport.blocked_since = 0.0
        pids = {peer.pid for peer in living}
        self.lost += [peer for peer in peers if peer.pid not in pids]
        transport.family.renew(living)
        self.world.renew(MpiTransport(self._mpi, comm, transport.family))

    @property
    def _transport(self) -> MpiTransport:
        transport = self.world.transport
        assert isinstance(transport, MpiTransport)
        return transport

    def _shrink(self, comm: Any) -> tuple[Any, tuple[Peer, ...]]:
        """A communicator of those of `comm` that live, and who they are; again where one dies
        meanwhile.
        """
        while True:
            comm = comm.Shrink()
            living: tuple[Peer, ...] = ()
            try:
                living = tuple(comm.allgather(this_process(comm.Get_rank())))
            except self._mpi.Exception:
                comm.Revoke()
            if self._agree(comm, bool(living)):
                return comm, living

    def _agree(self, comm: Any, is_well: bool) -> bool:
        """Is every rank of `comm` alive and well? The same answer on all that live; a revoked
        communicator will do.
        """
        try:
            return bool(comm.Agree(int(is_well)) == 1)
        except self._mpi.Exception:  # of a death; raised on all, then
            return False


def _agreed_loss() -> PeerLostError:
    error = PeerLostError(_LOST)
    error.agreed = True
    return error


def _require_ulfm(world: Communicator) -> None:
    """`MachineError` on all ranks where ULFM isn't there, or not known to work."""
    node = world.split_by_node()
    num_nodes = len(set(world.allgather_objects(node.broadcast_object(world.rank))))
    node.free()
    transport = world.transport
    if world.size == 1:
        problem = "this run has one rank, and nobody would be left; start more (dist-ml launch -n)"
    elif not isinstance(transport, MpiTransport) or transport.flavour != _MPI:
        problem = (
            f"{transport.flavour} can't go on after a death; use Open MPI: dist-ml launch "
            "--mpi openmpi --survive …"
        )
    elif os.environ.get(_ENABLED, "") not in ("1", "true"):
        problem = (
            "this job was started without ULFM, which srun can't turn on; start it by dist-ml "
            "launch --mpi openmpi --survive …, or mpiexec --with-ft ulfm …"
        )
    elif num_nodes > 1:
        problem = (
            f"these ranks are on {num_nodes} nodes, and Open MPI's agreement has been seen to hang "
            "between nodes; use checkpoints and resume=auto there"
        )
    else:
        return
    error = MachineError(f"fault.recover=shrink: {problem}; or leave it at none")
    error.agreed = True
    raise error


def leave(world: Communicator, status: int) -> None:
    """End this process where ranks may be lost: MPI_Finalize has been seen to wait for the dead for
    ever. Elsewhere do nothing. Collective.
    """
    transport = world.transport
    if isinstance(transport, MpiTransport) and transport.family.survives:
        transport.blocked_since = monotonic()  # the watch's limit holds here, too
        with contextlib.suppress(RuntimeError):  # another death
            transport.comm.Agree(1)  # a barrier that ends whoever dies
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
