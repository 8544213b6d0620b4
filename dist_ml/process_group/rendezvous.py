"""Where torch's ranks meet: a port of rank 0's host."""

import socket

from dist_ml.comm.communicator import Communicator


def meeting_place(comm: Communicator) -> tuple[str, int]:
    """An address and a free port of rank 0's host, on all ranks. Collective."""
    place: tuple[str, int] = comm.broadcast_object((_own_address(), _free_port()))
    return place


def _own_address() -> str:
    """This host's address on the network that its name stands for."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
