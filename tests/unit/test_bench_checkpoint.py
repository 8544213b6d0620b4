"""The measuring part of the checkpoint benchmark at tiny size, and its checks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ml.bench import checkpoint, checkpoint_part
from dist_ml.bench.benches import BENCHES
from dist_ml.bench.checkpoint_part import DD, LOAD, OURS, SAVE, SNAPSHOT, TORCH, Candidates
from dist_ml.cli import arguments, compose
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping
from dist_ml.errors import ConfigError, DataError
from tests.thread_world import run_ranks
from tests.unit.bench_worlds import GivenWorlds, on_threads


def config(*overrides: str) -> Any:
    request = arguments.parse(list(overrides), "checkpoint", "bench/checkpoint")
    return from_mapping(BENCHES["checkpoint"].config, compose.composed(request))


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_candidate_is_measured_in_every_round(ranks: int, tmp_path: Path) -> None:
    asked = {"folder": str(tmp_path), "num_matrices": 2, "width": 8, "rounds": 2}
    found = on_threads(ranks, checkpoint_part.measure, asked)
    assert set(found[SAVE]) == {OURS, DD, TORCH, SNAPSHOT}
    assert set(found[LOAD]) == {OURS, DD, TORCH}
    values = [values for candidates in found.values() for values in candidates.values()]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in values)
    assert list(tmp_path.iterdir()) == []
    result = checkpoint.run(config("ranks=[2]"), GivenWorlds({"checkpoint": found}))
    assert len(result.records) == 7
    assert len(result.checks) == 3
    assert all(len(str(check)) <= 80 for check in result.checks)


def test_candidates_write_the_whole_state(tmp_path: Path) -> None:
    def body(comm: Communicator) -> dict[str, torch.Tensor]:
        candidates = Candidates(comm, tmp_path, 2, 8)
        for call in candidates.saving().values():
            call()
        for call in candidates.loading().values():
            call()
        found = candidates.load_ours()
        assert all(torch.equal(found[name], part) for name, part in candidates.state.items())
        return candidates.state

    state = run_ranks(2, body)[0]
    assert (tmp_path / DD).stat().st_size == sum(tensor.nbytes for tensor in state.values())
    assert torch.load(tmp_path / TORCH, weights_only=True).keys() == state.keys()


def test_a_slow_save_or_load_fails_its_check() -> None:
    fast = {OURS: [1.0], DD: [0.8], TORCH: [1.0], SNAPSHOT: [0.1]}
    for what, name, seconds in ((SAVE, OURS, 1.2), (LOAD, OURS, 1.2), (SAVE, SNAPSHOT, 0.3)):
        slow = {SAVE: dict(fast), LOAD: dict(fast)}
        slow[what][name] = [seconds]
        failed = [check.name for check in checkpoint.rate_checks(slow, 2) if not check.passed]
        assert len(failed) == 1, failed
    assert all(check.passed for check in checkpoint.rate_checks({SAVE: fast, LOAD: fast}, 1))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    asked = {"folder": str(tmp_path / "gone"), "num_matrices": 1, "width": 1, "rounds": 1}
    with pytest.raises(DataError, match="gone can't be written"):
        on_threads(2, checkpoint_part.measure, asked)
    with pytest.raises(ConfigError, match="1 or more"):
        config("rounds=0")
