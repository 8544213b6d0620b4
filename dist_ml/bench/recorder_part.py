"""What the flight recorder adds to a call: a record is made, and its end noted."""

from collections.abc import Mapping
from time import monotonic_ns
from typing import Any

from dist_ml.comm.communicator import Communicator
from dist_ml.flight.recorder import ENDED
from dist_ml.measure.compare import own_seconds

_CALLS = 20_000  # more than the ring holds


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds a call on this rank, by kind and round; nothing is communicated."""
    calls = comm.calls

    def collective() -> None:
        record = calls.collective("allreduce", "float32", 1024, "sum", depth=2)
        record[ENDED] = monotonic_ns()

    def message() -> None:
        record = calls.message("send", "float32", 1024, 0, 7, depth=2)
        record[ENDED] = monotonic_ns()

    kinds = {"collective": collective, "message": message}
    return {
        kind: [own_seconds(call, _CALLS) for _ in range(arguments["rounds"])]
        for kind, call in kinds.items()
    }
