"""Going on from memory after a loss, without MPI: what is kept, what is written again, what is
refused. Real deaths are tests/test_shrinking.py's.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.peer_monitor import Peer
from dist_ml.comm.survivors import Survivors
from dist_ml.config.fault import FaultConfig
from dist_ml.errors import ConfigError, MachineError, PeerLostError
from dist_ml.train import metrics, run
from dist_ml.train.evaluator import Evaluator
from dist_ml.train.own import Own
from dist_ml.train.recovery_checks import check_recovery
from tests.configurations import train_config
from tests.unit.train_worlds import changed

ALONE = Communicator(Loopback())
SHRINK = FaultConfig("shrink")
TIMES = ("seconds", "samples_per_second", "communication_share", "traffic")


class Lossy:
    """In the place of `Survivors`: ranks that are lost when `agree` is called the `at`-th time, and
    were never there.
    """

    at: tuple[int, ...] = ()
    before_loss: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, world: Communicator) -> None:
        self.world, self.lost, self._calls = world, list[Peer](), itertools.count()

    def agree(self) -> None:
        if next(self._calls) in self.at:
            self.before_loss()
            raise PeerLostError("lost")

    def explain(self, error: BaseException) -> bool:
        return isinstance(error, PeerLostError)

    def shrink(self, error: BaseException) -> None:
        assert isinstance(error, PeerLostError)
        self.lost.append(Peer(1, 77, ""))


def trained(folder: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """Summary, metrics without times, and weights of a run with momentum and a schedule."""
    summary = run.train_run(changed(folder=str(folder), **changes), ALONE)
    lines = metrics.read(folder / "metrics.jsonl")
    told = [{key: line[key] for key in line if key not in TIMES} for line in lines]
    return summary, told, load_file(folder / "checkpoints" / "model.safetensors")


def assert_same(one: Any, other: Any) -> None:
    assert one[1] == other[1]
    assert all(torch.equal(one[2][name], other[2][name]) for name in other[2])


@pytest.mark.parametrize("at", [(0,), (2,), (3,), (2, 3), (5, 6)], ids=str)
def test_a_run_goes_on_bitwise(
    at: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step, at an epoch's first, twice in one step."""
    whole = trained(tmp_path / "whole")
    monkeypatch.setattr(run, "Survivors", type("Losing", (Lossy,), {"at": at}))
    lossy = trained(tmp_path / "lossy", fault=SHRINK)
    assert_same(lossy, whole)
    recoveries = lossy[0]["recoveries"]
    assert [recovery["rank"] for recovery in recoveries] == [1] * len(at)
    assert [recovery["step"] for recovery in recoveries] == [
        call - before for before, call in enumerate(at)
    ]
    log = (tmp_path / "lossy" / "log" / "rank-0000.log").read_text()
    assert log.count("rank 1 (process 77) was lost in step") == len(at)


def test_a_line_that_rank_0_died_before_is_written_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole")
    file = tmp_path / "lossy" / "metrics.jsonl"

    def cut() -> None:
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:-1]))

    losing = type("Losing", (Lossy,), {"at": (2,), "before_loss": staticmethod(cut)})
    monkeypatch.setattr(run, "Survivors", losing)
    assert_same(trained(tmp_path / "lossy", fault=SHRINK), whole)


def test_an_evaluation_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole")
    evaluate, calls = Evaluator.evaluate, itertools.count()

    def dying(*arguments: Any) -> Any:
        if next(calls) == 0:
            raise PeerLostError("lost")
        return evaluate(*arguments)

    monkeypatch.setattr(Evaluator, "evaluate", dying)
    monkeypatch.setattr(run, "Survivors", Lossy)
    assert_same(trained(tmp_path / "lossy", fault=SHRINK), whole)


def test_other_errors_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Evaluator, "evaluate", broken)
    monkeypatch.setattr(run, "Survivors", Lossy)
    with pytest.raises(RuntimeError, match="a bug"):
        trained(tmp_path / "run", fault=SHRINK)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("data_parallel=zero1", "data_parallel=zero1: .* its shard of the optimizer's state"),
        ("data_parallel=periodic", "periodic: .* the parameters of its own local steps"),
        ("sparse=topk", "sparse.allreduce=auto: .* its residual"),
        ("mesh.pipeline=2", "mesh.pipeline=2: .* its stages; use mesh.pipeline=1"),
        ("reproduce=bitwise", "shards=8 can't be dealt .* up to 4, .* use a multiple of 12"),
        ("mesh.operator=2", "mesh.operator=2: .* its parts of layers"),
    ],
)
def test_refused(overrides: str, words: str) -> None:
    config = train_config("fault.recover=shrink", *overrides.split())
    sizes = {
        "data": 4,
        "pipeline": config.mesh.pipeline or 1,
        "operator": config.mesh.operator or 1,
    }
    with pytest.raises(ConfigError, match=words):
        check_recovery(config, sizes, Own())


def test_no_other_way_to_recover() -> None:
    with pytest.raises(ConfigError, match=r"fault\.recover=shrunk is not one of none, shrink"):
        train_config("fault.recover=shrunk")


def test_a_models_own_program_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be taken back"):
        check_recovery(changed(fault=SHRINK), {}, Own(torch.nn.Linear(1, 1)))


def test_worlds_that_cannot_shrink_say_why() -> None:
    with pytest.raises(MachineError, match="one rank, and nobody would be left"):
        Survivors(ALONE)

    def body(world: Communicator) -> None:
        with pytest.raises(MachineError, match="threads can't go on after a death; use Open MPI"):
            Survivors(world)

    run_ranks(2, body)
