"""The tests themselves: ids that every process agrees on, and an end that shows where it stood."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
HANGS = """
import time

def test_hangs():
    time.sleep(60)
"""


def run_pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def collected(hash_seed: str) -> list[str]:
    done = run_pytest("--collect-only", str(TESTS / "unit"), PYTHONHASHSEED=hash_seed)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_ids_do_not_depend_on_the_hash_seed() -> None:
    """pytest-xdist collects in several processes, and all must find the same tests in the same
    order.
    """
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(collected, ("1", "2"))
    assert first
    assert first == second
    assert not [test for test in first if " at 0x" in test]


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_hanging_test_is_shown_and_ended(processes: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_hanging.py").write_text(HANGS)
    done = run_pytest(*processes, "-c", "/dev/null", str(tmp_path), DIST_ML_TIME_LIMIT_SECONDS="5")
    assert done.returncode != 0
    assert "in test_hangs" in done.stderr
