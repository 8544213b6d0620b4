"""What a user's own script begins with: the ranks that were started, as a mesh."""

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

import numpy as np

from dist_ml.cli import ranks
from dist_ml.comm import mpi
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.host_links import HostLinks
from dist_ml.comm.mesh import Mesh, resolve_sizes
from dist_ml.comm.mpi_transport import MpiTransport
from dist_ml.comm.peer_monitor import LIMIT_SECONDS, death_among
from dist_ml.comm.script_end import mark_ended, wait_for_all
from dist_ml.errors import CommunicationError, ConfigError, DistMLError
from dist_ml.flight import record_file
from dist_ml.flight.on_signal import DUMP
from dist_ml.flight.recorder import Recorder
from dist_ml.launch import stacks
from dist_ml.launch.process import handled
from dist_ml.launch.signal_pipe import signal_pipe

_meshes: list[Mesh] = []  # made by `init`


def init(
    data: int | None = None,
    pipeline: int = 1,
    operator: int = 1,
    flight: str | Path | None = None,
) -> Mesh:
    """The mesh of all ranks that `mpiexec`, `srun` or `dist-ml launch` started; of one rank where
    nothing did, and then without MPI. Call it once, at the start of a script.

    From then on an exception on one rank ends all of them, as under `python -m mpi4py`, with the
    traceback and the rank in words, and so does a rank whose script is over while others of its
    node wait, after 20 s, and a host that can't be reached any more, after 8 s; under `dist-ml
    launch --time-limit` every rank's stack is printed at the limit. `flight`: a folder that ranks
    write their flight records to when one of them fails, and at SIGUSR2, for `dist-ml doctor hang
    FOLDER`; those of an earlier job are removed from it.

    `MeshError` on all ranks unless the sizes multiply to the number of ranks; `ConfigError` where
    `flight` can't be written; `MachineError` where launcher and MPI don't fit;
    `CommunicationError` the second time.
    """
    if _meshes:
        raise CommunicationError(
            "dist_ml.init() was called before; keep the mesh that it returned, and make others "
            "from it: Mesh(mesh.world, sizes)"
        )
    world = started_world()
    with raise_on_all_ranks(world):
        sizes = resolve_sizes(
            {"data": data, "pipeline": pipeline, "operator": operator}, world.size
        )
    HostLinks(world).start()
    if flight is not None:
        _write_records(world, Path(flight).absolute())
    _meshes.append(Mesh(world, sizes))
    return _meshes[0]


@functools.cache  # MPI starts once a process
def started_world() -> Communicator:
    """All ranks of this script, which from now on end together."""
    stacks.arm()
    world = mpi.world()
    if isinstance(world.transport, MpiTransport):
        world.transport.end_when_stuck(lambda message: ranks.end_stuck(world, message))
    if world.size > 1:
        _end_all_on_exceptions(world)
        _end_together(world)
    return world


def _write_records(world: Communicator, folder: Path) -> None:
    """From here on flight records are written, to `folder`."""

    def make() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record_file.forget(folder)
        except OSError as error:
            raise ConfigError(
                f"flight={folder} can't hold flight records: {error.strerror or error}; choose "
                "another folder"
            ) from error

    from_root(world, make)
    with raise_on_all_ranks(world):
        if not folder.is_dir():  # a node that doesn't share the file system has its own
            make()
    world.recorder.folder = folder
    _hear(world.recorder)


def _hear(recorder: Recorder) -> None:
    """Write the record at each SIGUSR2, on a thread. A handler of the script's own stays."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(DUMP) is not signal.SIG_DFL:
        return
    heard = contextlib.ExitStack()
    reader = heard.enter_context(signal_pipe())
    heard.enter_context(handled(lambda *_: None, DUMP))
    atexit.register(heard.close)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # it has the pipe, too

    def listen() -> None:
        while numbers := os.read(reader, 64):
            if DUMP in numbers:
                record_file.write(recorder, DUMP.name)

    threading.Thread(target=listen, name="flight-records", daemon=True).start()


def _end_together(world: Communicator) -> None:
    """When this rank's script is over the others are told, and waited for: one that waits for this
    one then ends all, and does not wait for ever.
    """
    last = world.split(0)  # whatever others still exchange doesn't meet this
    assert last is not None
    process = os.getpid()

    def at_exit() -> None:
        if os.getpid() != process:  # of a fork
            return
        mark_ended()
        peers = world.transport.peers
        try:
            arrived = last.iallreduce(np.zeros(1, np.float32))
            wait_for_all(arrived.test, lambda: death_among(peers), LIMIT_SECONDS)
        except CommunicationError as error:
            ranks.end_alone(world, error, debug=False)

    atexit.register(at_exit)


def _end_all_on_exceptions(world: Communicator) -> None:
    """Whatever ends this rank's script early ends the other ranks, too: they would wait for it for
    ever.
    """

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if isinstance(error, DistMLError) and error.agreed:
            if world.rank == 0:
                traceback.print_exception(kind, error, where, chain=False)
            return  # all ranks end by themselves
        if isinstance(error, KeyboardInterrupt):
            ranks.end_interrupted(world)
        ranks.end_alone(world, error, debug=True)

    sys.excepthook = hook
