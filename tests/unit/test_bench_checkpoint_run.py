"""Steps beside saving, and resuming: the measuring part at tiny size, and its checks."""

from pathlib import Path

import pytest

from dist_ml.bench import checkpoint_run
from dist_ml.bench.checkpoint_run import FRESH, READING, RESUMED, SAVING, STEP, run_checks
from dist_ml.errors import ConfigError
from tests.unit.bench_worlds import GivenWorlds, bench_config, failed, on_threads, only_finite

TINY = ("widths=[5,6,3]", "batch_size=6", "steps=3", "rounds=2", "train.kernel=torch")


@pytest.mark.parametrize("ranks", [1, 2])
def test_everything_is_measured_in_every_round_and_removed(ranks: int, tmp_path: Path) -> None:
    config = bench_config("checkpoint_run", *TINY, f"folder={tmp_path}", f"ranks=[{ranks}]")
    worlds = GivenWorlds(
        {
            "checkpoint run": lambda ranks, arguments: on_threads(
                ranks, checkpoint_run.measure, arguments
            )
        }
    )
    result = checkpoint_run.run(config, worlds)
    only_finite(result)
    assert [record["what"] for record in result.records] == [STEP, SAVING, FRESH, READING, RESUMED]
    assert len(result.checks) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_slow_save_or_resume_fails_its_check() -> None:
    fast = {STEP: [1.0], SAVING: [1.04], FRESH: [1.0], READING: [0.5], RESUMED: [1.9]}
    assert failed(run_checks(fast, 1)) == []
    slow = failed(run_checks({**fast, SAVING: [1.06]}, 2))
    assert slow == ["step with saving in the background over a step, 2 ranks"]
    slow = failed(run_checks({**fast, RESUMED: [2.0]}, 1))
    assert slow == ["resuming over a fresh start and reading, 1 rank"]


@pytest.mark.parametrize("words", ["steps=1", "rounds=0", "ranks=[0]"])
def test_numbers_that_measure_nothing(words: str) -> None:
    with pytest.raises(ConfigError, match=r"2 or more, rounds=.* 1 or more"):
        bench_config("checkpoint_run", words)
