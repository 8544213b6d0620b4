"""Where torch's ranks meet."""

import socket

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.process_group import rendezvous


def test_a_host_without_a_name_meets_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> str:
        raise OSError("no such name")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    address, port = rendezvous.meeting_place(Communicator(Loopback()))
    assert address == "127.0.0.1"
    assert 1024 <= port < 1 << 16
