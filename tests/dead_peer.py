"""A rank whose process has ended."""

import multiprocessing
import os

from dist_ml.comm.peer_monitor import Peer, this_process


def dead_peer(rank: int) -> Peer:
    """As rank `rank` would be seen after its death."""
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    assert process.pid is not None
    return this_process(rank)._replace(pid=process.pid)
