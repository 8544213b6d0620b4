"""The compiler of the inner loops: kept machine code where a folder can be written, and none of it
where not.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_ml import compiled

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")

LOOP = """
from dist_ml.compiled import compiled_loop

@compiled_loop(boundscheck=False)
def total(n):
    found = 0
    for i in range(n):
        found += i
    return found

@compiled_loop()
def double(n):
    return 2 * n
"""
RUN = "import loop; assert (loop.total(5), loop.double(4)) == (10, 8)"


def run_loop(folder: Path, home: str, **variables: str) -> str:
    """What a new process says that compiles the loops of `folder` with this home."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NUMBA_", "XDG_")) and name != "DIST_ML_NUMBA"
    }
    environment |= variables | {"HOME": home, "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", RUN], env=environment, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    return done.stderr


def test_machine_code_is_kept_beside_the_source(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    assert run_loop(tmp_path, "/dev/null") == ""
    assert {file.suffix for file in (tmp_path / "__pycache__").iterdir()} >= {".nbi", ".nbc"}


def test_loops_run_uncached_where_no_folder_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    (tmp_path / "__pycache__").write_text("a file here is a folder that not even root can write")
    said = run_loop(tmp_path, "/dev/null")
    assert said.count("set NUMBA_CACHE_DIR") == 1
    assert run_loop(tmp_path, "/dev/null", PMI_RANK="1") == ""  # rank 0 says it for all


def test_other_errors_of_the_compiler_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    def fails(**_: object) -> None:
        raise RuntimeError("no such target")

    monkeypatch.setattr(numba, "njit", fails)
    with pytest.raises(RuntimeError, match="no such target"):
        compiled.compiled_loop()(lambda: None)
