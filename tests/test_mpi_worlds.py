"""Runs tests/mpi on 1, 2, 3 and 4 ranks of both MPI wheels; each of its tests appears here as a
subtest.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from dist_ml.launch import mpiexec
from dist_ml.launch.job import Completed

TIME_LIMIT_SECONDS = 300.0
TESTS = Path(__file__).parent
TESTS_FAILED, NOTHING_COLLECTED = 1, 5  # pytest's exit statuses


class Outcome(NamedTuple):
    """How one test ended, on all ranks together."""

    test: str
    outcome: str
    text: str


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_world(flavour: str, ranks: int, tmp_path: Path, subtests: pytest.Subtests) -> None:
    completed, outcomes = run_pytest(TESTS / "mpi", ranks, flavour, tmp_path / "outcomes.jsonl")
    for test, outcome, text in outcomes:
        with subtests.test(f"{test} on {ranks} ranks of {flavour}"):
            if outcome == "failed":
                pytest.fail(text, pytrace=False)
            if outcome == "skipped":
                pytest.skip(text)
    if completed.timed_out:
        pytest.fail(
            f"still running after {TIME_LIMIT_SECONDS:g} "
            f"s\n{own_frames(completed.stacks)}{completed.stdout}",
            pytrace=False,
        )
    told = completed.returncode == TESTS_FAILED and any(
        outcome.outcome == "failed" for outcome in outcomes
    )
    if completed.returncode not in (0, NOTHING_COLLECTED) and not told:
        pytest.fail(
            f"exit status {completed.returncode}\n{completed.stdout}{completed.stderr}",
            pytrace=False,
        )


def test_world_without_numba(flavour: str, tmp_path: Path) -> None:
    """Reductions in shared memory, sparse sums and training on the plain references."""
    files = [str(TESTS / "mpi" / name) for name in ("test_allreduce.py", "test_sparse.py")]
    outcomes = tmp_path / "outcomes.jsonl"
    completed, told = run_pytest(files[0], 2, flavour, outcomes, {"DIST_ML_NUMBA": "0"}, files[1:])
    assert completed.returncode == 0, completed.stdout[-5000:]
    assert sum(outcome.outcome == "passed" for outcome in told) > 40


FAILING = """
import pytest
pytestmark = pytest.mark.mpi

def test_passes(world): world.barrier()
def test_fails_on_one(world): assert world.rank != 1, "a reason"
def test_still_in_step(world): world.barrier()
@pytest.mark.mpi(min_size=3)
def test_for_more_ranks(world): pass
def test_others_wait(world):
    assert world.rank != 1, "another reason"
    world.barrier()
"""


def test_a_failure_on_one_rank_fails_all_names_it_and_hangs_nobody(
    flavour: str, tmp_path: Path
) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    shutil.copy(TESTS / "mpi" / "conftest.py", folder)
    (folder / "test_failing.py").write_text(FAILING)
    completed, outcomes = run_pytest(
        folder, 2, flavour, tmp_path / "outcomes.jsonl", {"DIST_ML_TEST_WAIT_SECONDS": "1"}
    )
    assert not completed.timed_out, completed
    assert completed.returncode != 0
    assert [outcome.outcome for outcome in outcomes] == ["passed", "failed", "passed", "failed"]
    assert "on rank 1 of 2" in outcomes[1].text
    assert "a reason" in outcomes[1].text
    assert "rank 1 failed and other ranks still wait" in outcomes[3].text
    assert "another reason" in outcomes[3].text


def run_pytest(
    folder: Path | str,
    ranks: int,
    flavour: str,
    record: Path,
    extra: dict[str, str] | None = None,
    more: Sequence[str] = (),
) -> tuple[Completed, list[Outcome]]:
    """Run the tests of `folder` on `ranks` ranks; gives how the job ended and what rank 0 wrote to
    `record`.
    """
    record.touch()
    options = [
        "--with-mpi",
        "-q",
        "--color=no",
        "-p",
        "no:cacheprovider",
        "-c",
        str(TESTS.parent / "pyproject.toml"),
    ]
    completed = mpiexec.run(
        [sys.executable, "-m", "pytest", *options, str(folder), *more],
        ranks,
        flavour,
        time_limit_seconds=TIME_LIMIT_SECONDS,
        capture=True,
        environment={"DIST_ML_TEST_OUTCOMES": str(record), "OMP_NUM_THREADS": "1", **(extra or {})},
    )
    return completed, [Outcome(**json.loads(line)) for line in record.read_text().splitlines()]


def own_frames(stacks: str) -> str:
    """The stacks without the test runner's frames, which are the same thirty on every rank."""
    runner = ("/_pytest/", "/pluggy/", "/pytest/", "<frozen runpy>")
    return "".join(
        line
        for line in stacks.splitlines(keepends=True)
        if not any(part in line for part in runner)
    )
