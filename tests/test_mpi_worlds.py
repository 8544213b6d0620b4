"""Runs tests/mpi on 1, 2, 3 and 4 ranks of both MPI wheels; each of its tests appears here as a subtest."""

import json
import sys
from pathlib import Path

import pytest

from dist_ml.launch import mpi_installation, mpiexec

TIME_LIMIT_SECONDS = 300.0
MPI_TESTS = Path(__file__).parent / "mpi"
TESTS_FAILED, NOTHING_COLLECTED = 1, 5  # pytest's exit statuses


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("flavour", ["mpich", "openmpi"])
def test_world(flavour: str, ranks: int, tmp_path: Path, subtests: pytest.Subtests) -> None:
    if flavour not in [installation.name for installation in mpi_installation.available()]:
        pytest.skip(f"the {flavour} wheel is not installed: pip install 'dist_ml[{flavour}]'")
    outcomes = tmp_path / "outcomes.jsonl"
    outcomes.touch()
    program = [sys.executable, "-m", "pytest", "--with-mpi", "-q", "--color=no", "-p", "no:cacheprovider", str(MPI_TESTS)]
    environment = {"DIST_ML_TEST_OUTCOMES": str(outcomes), "OMP_NUM_THREADS": "1"}
    completed = mpiexec.run(program, ranks, flavour, time_limit_seconds=TIME_LIMIT_SECONDS, capture=True, environment=environment)
    reported = [json.loads(line) for line in outcomes.read_text().splitlines()]
    for outcome in reported:
        with subtests.test(f"{outcome['test']} on {ranks} ranks of {flavour}"):
            if outcome["outcome"] == "failed":
                pytest.fail(outcome["text"], pytrace=False)
            if outcome["outcome"] == "skipped":
                pytest.skip(outcome["text"])
    if completed.timed_out:
        pytest.fail(
            f"still running after {TIME_LIMIT_SECONDS:g} s\n{own_frames(completed.stacks)}{completed.stdout}", pytrace=False
        )
    told = completed.returncode == TESTS_FAILED and any(outcome["outcome"] == "failed" for outcome in reported)
    if completed.returncode not in (0, NOTHING_COLLECTED) and not told:
        pytest.fail(f"exit status {completed.returncode}\n{completed.stdout}{completed.stderr}", pytrace=False)


def own_frames(stacks: str) -> str:
    """The stacks without the test runner's frames, which are the same thirty on every rank."""
    runner = ("/_pytest/", "/pluggy/", "/pytest/", "<frozen runpy>")
    return "".join(line for line in stacks.splitlines(keepends=True) if not any(part in line for part in runner))
