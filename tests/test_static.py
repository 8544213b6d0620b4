"""The checks that read the code instead of running it; here, so that one closing line tells of
everything.
"""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.parametrize("check", ["ruff format --check", "ruff check", "mypy"])
def test_static_check(check: str) -> None:
    pytest.importorskip(check.split(" ")[0], reason=f"{check} is part of the dev extra")
    command = [sys.executable, "-m", *check.split(" ")]
    told = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    if told.returncode:
        pytest.fail(f"{check} says:\n{told.stdout}{told.stderr}", pytrace=False)
