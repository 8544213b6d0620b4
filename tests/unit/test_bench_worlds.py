"""Where parts are measured: worlds that are started for them, the rank that such a world runs, and
what an allreduce is compared with.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.bench import candidates, part, worlds
from dist_ml.bench.benches import BENCHES, PARTS
from dist_ml.bench.candidates import GLOO, LIMIT, ORDINARY, Candidates
from dist_ml.bench.form import Check, Result
from dist_ml.bench.worlds import StartedWorlds
from dist_ml.cli import bench as command
from dist_ml.comm import mpi
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import MachineError
from dist_ml.launch.job import Completed
from tests.thread_world import run_ranks


class Started:
    """Stands for mpiexec: writes `result` where rank 0 would, unless it is None."""

    def __init__(self, result: Any, status: int = 0) -> None:
        self.result, self.status = result, status
        self.calls: list[tuple[Sequence[str], int, str | None, Mapping[str, Any]]] = []

    def run(self, program: Sequence[str], ranks: int, mpi: str | None, **options: Any) -> Completed:
        self.calls.append((program, ranks, mpi, options))
        if self.result is not None:
            Path(program[-1]).write_text(json.dumps(self.result))
        return Completed(self.status, "", "a rank said why", False, "")


def started(monkeypatch: pytest.MonkeyPatch, result: Any, status: int = 0) -> Started:
    launcher = Started(result, status)
    monkeypatch.setattr(worlds.mpiexec, "run", launcher.run)
    return launcher


def test_a_world_is_started_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = started(monkeypatch, {"seconds": [1.0]})
    own = StartedWorlds(2, "mpich", time_limit_seconds=30.0)
    assert own.measure("step", {"steps": 3}) == {"seconds": [1.0]}
    assert own.measure("step", {}, ranks=4, mpi="openmpi", environment={"A": "1"})
    (program, ranks, flavour, options), (_, more, other, others) = launcher.calls
    assert list(program[1:5]) == ["-m", "dist_ml.bench.part", "step", '{"steps": 3}']
    assert (ranks, flavour, options["time_limit_seconds"]) == (2, "mpich", 30.0)
    assert (more, other, others["environment"]) == (4, "openmpi", {"A": "1"})
    assert options["capture"]
    assert not Path(program[-1]).exists()  # its folder is gone


@pytest.mark.parametrize(
    ("result", "status"),
    [pytest.param({}, 3, id="a rank failed"), pytest.param(None, 0, id="nothing was written")],
)
def test_a_world_that_measured_nothing_is_told(
    result: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, result, status)
    with pytest.raises(MachineError, match=rf"measured step ended with status {status}:\na rank"):
        StartedWorlds(1, None).measure("step", {})


# --- the rank


class AbortedError(Exception):
    """The job was ended."""


class Ending(Communicator):
    """One rank of a job that an abort ends."""

    def abort(self, status: int) -> None:
        raise AbortedError(str(status))


def test_rank_0_writes_what_its_part_returned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(part, "world", lambda: Communicator(Loopback()))
    monkeypatch.setitem(PARTS, "double", lambda _, arguments: 2 * arguments["x"])
    part.main("double", '{"x": 4}', str(tmp_path / "result.json"))
    assert json.loads((tmp_path / "result.json").read_text()) == 8


def test_a_part_that_fails_ends_the_job_and_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(part, "world", lambda: Ending(Loopback()))
    monkeypatch.setitem(PARTS, "fail", lambda *_: [].pop())
    with pytest.raises(AbortedError, match="1"):
        part.main("fail", "{}", str(tmp_path / "result.json"))
    told = capsys.readouterr().err
    assert told.startswith("rank 0:\nTraceback")
    assert "IndexError" in told
    assert not (tmp_path / "result.json").exists()


# --- the command on ranks that were started already


@pytest.mark.parametrize(
    ("check", "value", "status"), [(True, 2.0, 1), (True, 0.5, 0), (False, 2.0, 0)]
)
def test_on_ranks_that_exist_rank_0_shows_and_all_end_alike(
    check: bool, value: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    def run(_: Any, where: Any) -> Result:
        ranks = where.measure("count", {})
        return Result("step", [{"ranks": ranks}], [Check("seconds", value, 1.0, "lower")])

    shown: list[Result] = []
    monkeypatch.setitem(BENCHES, "step", replace(BENCHES["step"], run=run))
    monkeypatch.setitem(PARTS, "count", lambda comm, _: comm.size)
    monkeypatch.setattr(command, "show", shown.append)
    monkeypatch.setattr(mpi, "launched", lambda: True)
    monkeypatch.setattr(command.ranks, "run_on_ranks", lambda body, _: run_ranks(3, body))
    assert command.main(["step", *(["--check"] if check else [])]) == [status] * 3
    assert [result.records for result in shown] == [[{"ranks": 3}]]


# --- what an allreduce is compared with


@pytest.mark.parametrize("name", ["ring", "ring:bf16", "native", "rabenseifner:fp32", LIMIT])
def test_candidates_can_be_called_again_and_again(name: str) -> None:
    def body(comm: Communicator) -> int:
        made = Candidates(comm)
        call = made.call(name, 1000)
        for _ in range(3):
            call()
        made.close()
        return comm.traffic.total().calls

    calls = run_ranks(2, body)
    assert all(count == 0 for count in calls) == (name == LIMIT)


def test_what_a_candidate_reduces_stays_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that grew would overflow, and then take other times."""
    reduced: list[torch.Tensor] = []

    class Noting:
        def allocate(self, n: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((n,), torch.nan, dtype=dtype).nan_to_num_(7.0)

        def __call__(self, x: torch.Tensor) -> None:
            reduced.append(x.clone())

        def free(self) -> None:
            """Nothing is held."""

    made: list[tuple[str, str]] = []

    def make(algorithm: str, _: Communicator, wire: str) -> Noting:
        made.append((algorithm, wire))
        return Noting()

    monkeypatch.setattr(candidates.family, "make", make)
    own = Candidates(Communicator(Loopback()))
    for name in ("ring:bf16", "hierarchical", ORDINARY):
        own.call(name, 4)()
    assert made == [("ring", "bf16"), ("hierarchical", "fp32"), ("shared_memory", "fp32")]
    assert [x.tolist() for x in reduced] == [[0.0] * 4] * 3
    own.close()


def test_gloo_joins_once_and_leaves() -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    own = Candidates(Communicator(Loopback()))
    try:
        for _ in range(2):
            own.call(GLOO, 8)()
        assert torch.distributed.get_backend() == "gloo"
        assert torch.distributed.get_world_size() == 1
    finally:
        own.close()
    assert not torch.distributed.is_initialized()


def test_the_limit_reads_and_writes_its_own_memory_alone() -> None:
    x = torch.arange(4.0)
    candidates._scale(x)
    np.testing.assert_array_equal(x.numpy(), np.arange(4.0))
