"""Waiting for the ranks of a node: a death is noticed, waiting ends, and memory that isn't there is
told in words.
"""

import multiprocessing
import os

import pytest

from dist_ml.comm import shared_buffer
from dist_ml.comm.backoff import Backoff
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.peer_monitor import Peer, PeerMonitor, is_alive, this_process
from dist_ml.comm.shared_buffer import SharedBuffer
from dist_ml.errors import CommunicationError, MachineError


def me() -> Peer:
    return this_process(0)


def wait_for_ever(monitor: PeerMonitor) -> None:
    while True:
        monitor.between_looks()


def test_a_death_is_noticed() -> None:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    assert process.pid is not None
    process.join()
    dead = me()._replace(rank=1, pid=process.pid)
    assert is_alive(me())
    assert not is_alive(dead)
    with pytest.raises(
        CommunicationError, match=f"rank 1 \\(process {process.pid} on this node\\) died"
    ):
        wait_for_ever(PeerMonitor([me(), dead]))


def test_waiting_ends() -> None:
    with pytest.raises(CommunicationError, match=r"waited .* every rank must make the same"):
        wait_for_ever(PeerMonitor([me()], limit_seconds=0.1))


def test_pauses_grow_with_the_time_waited() -> None:
    backoff = Backoff()
    looks = 0
    while backoff.between_looks() < 0.02:
        looks += 1
    assert looks < 2000  # busy waiting would look some ten thousand times


def test_more_than_the_node_has_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shared_buffer, "free_bytes", lambda: 5 * 2**20)
    with pytest.raises(
        MachineError,
        match=r"needs 7\.6 MiB in /dev/shm for 1 ranks, but only 5\.0 MiB are free there",
    ):
        SharedBuffer(Communicator(Loopback()), 2_000_000, torch.float32)
