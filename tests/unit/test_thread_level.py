"""What threads need of MPI is asked for at the start, by all ranks together."""

import pytest
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.thread_level import LEVELS, require_thread_level
from dist_ml.errors import MachineError


@pytest.mark.parametrize("needed", LEVELS)
@pytest.mark.parametrize("granted", LEVELS)
def test_the_least_that_any_rank_is_granted_decides(needed: str, granted: str) -> None:
    def body(comm: Communicator) -> str | None:
        if comm.rank == 1:
            comm.transport.thread_level = granted  # type: ignore[misc]
        try:
            require_thread_level(comm, needed, "allreduce.overlap=thread")
        except MachineError as error:
            return f"{error} (agreed: {error.agreed})"
        return None

    found = run_ranks(3, body)
    assert len(set(found)) == 1
    if LEVELS.index(granted) >= LEVELS.index(needed):
        assert found[0] is None
    else:
        assert found[0] is not None
        assert f"allreduce.overlap=thread needs MPI_THREAD_{needed}" in found[0]
        assert "(agreed: True)" in found[0]
        assert f"grants MPI_THREAD_{granted}" in found[0]
