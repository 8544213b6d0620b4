"""Checked mode: ranks compare what they are about to do before each collective.

Without it, two ranks in different collectives hang, or exchange nonsense. With it
(`comm.checked=true`) each collective is preceded by a small exchange of fingerprints, and a
difference raises on all ranks, naming both sides.
"""

import os
import sys
import time

import numpy as np

from dist_ml.comm.transport import Transport
from dist_ml.errors import CommunicationError

_FINGERPRINT_BYTES = 256
_OWN_FOLDER = os.path.dirname(__file__)


class Checker:
    """Compares fingerprints over a duplicate of the group, so that they can't be mistaken for the
    group's own messages.

    A rank that does not arrive within `limit_seconds` is reported by those that wait for it.
    """

    def __init__(self, transport: Transport, limit_seconds: float = 60.0) -> None:
        self._transport = transport
        self._limit_seconds = limit_seconds

    def check(self, collective: str, dtype: str, count: int | None, root: int | None) -> None:
        """Raise `CommunicationError` on all ranks unless all make the same call. Costs an allgather
        of 256 bytes.
        """
        described = f"{collective} dtype={dtype}"
        described += f" count={count}" if count is not None else ""
        described += f" root={root}" if root is not None else ""
        calls = self._exchange(f"{described} at {_call_site()}")
        for rank, call in enumerate(calls):
            if call != calls[0]:
                raise CommunicationError(
                    f"ranks are in different collectives: rank 0 calls {calls[0]}, but rank "
                    f"{rank} calls {call}; "
                    "every rank must make the same calls in the same order"
                )

    def free(self) -> None:
        self._transport.free()

    def _exchange(self, call: str) -> list[str]:
        own = np.frombuffer(
            call.encode()[:_FINGERPRINT_BYTES].ljust(_FINGERPRINT_BYTES), dtype=np.uint8
        )
        size = self._transport.size
        everybody = np.empty(size * _FINGERPRINT_BYTES, dtype=np.uint8)
        request = self._transport.iallgather(own, everybody, [_FINGERPRINT_BYTES] * size)
        deadline = time.monotonic() + self._limit_seconds
        while not request.test():
            if time.monotonic() > deadline:
                raise CommunicationError(
                    f"rank {self._transport.rank} waited {self._limit_seconds:g} s in {call} "
                    "for ranks that did not come"
                )
            time.sleep(0)
        return [bytes(row).decode(errors="replace").rstrip() for row in everybody.reshape(size, -1)]


def _call_site() -> str:
    """The file and line, outside this folder, that made the call."""
    frame = sys._getframe(2)
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == _OWN_FOLDER:
        frame = frame.f_back
    folder, name = os.path.split(frame.f_code.co_filename)
    return f"{os.path.basename(folder)}/{name}:{frame.f_lineno}"
