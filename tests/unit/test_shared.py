"""Waiting for the ranks of a node: a death is noticed, backoff ends, and memory that isn't there is
told in words.
"""

import multiprocessing
import os

import pytest

from dist_ml.comm import shared
from dist_ml.comm.backoff import Backoff
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.shared import Peer, SharedArena, Watch, is_alive
from dist_ml.errors import CommunicationError, MachineError


def me() -> Peer:
    return Peer(os.getpid(), os.readlink("/proc/self/ns/pid"))


def wait_for_ever(watch: Watch) -> None:
    while True:
        watch.between_looks()


def test_a_death_is_noticed() -> None:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    assert process.pid is not None
    process.join()
    dead = me()._replace(pid=process.pid)
    assert is_alive(me())
    assert not is_alive(dead)
    with pytest.raises(
        CommunicationError, match=f"rank 1 of this node \\(process {process.pid}\\) died"
    ):
        wait_for_ever(Watch([me(), dead]))


def test_patience_ends() -> None:
    with pytest.raises(
        CommunicationError, match=r"waited .* every rank must reduce the same buffers"
    ):
        wait_for_ever(Watch([me()], limit_seconds=0.1))


def test_naps_grow_with_the_time_waited() -> None:
    backoff = Backoff()
    looks = 0
    while backoff.between_looks() < 0.02:
        looks += 1
    assert looks < 2000  # busy waiting would look some ten thousand times


def test_more_than_the_node_has_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shared, "free_bytes", lambda: 5 * 2**20)
    with pytest.raises(
        MachineError,
        match=r"needs 7\.6 MiB in /dev/shm for 1 ranks, but only 5\.0 MiB are free there",
    ):
        SharedArena(Communicator(Loopback()), 2_000_000, torch.float32)
