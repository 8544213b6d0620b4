"""What a rank tells the others of its node when its script is over, and who has told so.

The word stands where every process can see it without MPI: as the process's name (/proc/PID/comm).
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_ml.comm.backoff import Backoff
from dist_ml.errors import CommunicationError

if TYPE_CHECKING:
    from dist_ml.comm.peer_monitor import Peer

# All ranks of a script end together, give or take so much: what a rank that still communicates
# waits for has not come then.
ENDED_SECONDS = 20.0
_NAME = "script ended"  # 15 bytes at most


def mark_ended() -> None:
    """This rank's script is over. Shown by ps and top as well; on systems without /proc nothing
    is.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_NAME)


def ended_among(peers: "Sequence[Peer]") -> str | None:
    """Whose script is over while this rank waits, in words; None where nobody's is."""
    for peer in peers:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{peer.pid}/comm").read_text().strip() == _NAME:
                return (
                    f"rank {peer.rank} has come to the end of its script while this rank waits for "
                    "others; every rank must make as many exchanges (BatchSampler deals as many "
                    "batches to each; DataParallel.join takes fewer)"
                )
    return None


def wait_for_all(
    have_all_ended: Callable[[], bool], look: Callable[[], str | None], limit_seconds: float
) -> None:
    """At the end of a script, until all have come to it. `CommunicationError` when `look` finds
    that one never will, or after the limit.
    """
    backoff, next_look = Backoff(), 1.0
    while not have_all_ended():
        waited = backoff.between_looks()
        if waited < next_look:
            continue
        next_look = waited + 1.0
        if death := look():
            raise CommunicationError(death)
        if waited > limit_seconds:
            raise CommunicationError(
                f"this rank's script is over, and for {waited:.0f} s others' are not; "
                "what they do so long must come before the last exchange of all"
            )
