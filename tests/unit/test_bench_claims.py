"""benchmarks/reproduce.sh and claims.py: every benchmark is made again, and missed claims show."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import claims
from dist_ml.bench.benches import BENCHES
from dist_ml.bench.form import Check, Result
from tests.unit.bench_worlds import bench_config

SCRIPT = Path(claims.__file__).with_name("reproduce.sh")


def write(folder: Path, label: str, value: float) -> None:
    check = Check("step over bare", value, 1.05, "lower")
    result: dict[str, Any] = Result("step", [], [check]).to_json({"cores": 2, "commit": None})
    (folder / f"{label}.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("value", "status", "line"),
    [
        pytest.param(1.01, 0, "- step: step over bare: 1.01 ≤ 1.05, held", id="held"),
        pytest.param(1.2, 1, "- step: step over bare: 1.2 ≤ 1.05, MISSED", id="missed"),
    ],
)
def test_claims(value: float, status: int, line: str, tmp_path: Path) -> None:
    write(tmp_path, "step", value)
    assert claims.main([str(tmp_path)]) == status
    assert (tmp_path / "claims.md").read_text().splitlines() == ["cores: 2", "", line]


def test_a_benchmark_that_left_no_result_is_no_success(tmp_path: Path) -> None:
    assert claims.main([str(tmp_path)]) == 1
    write(tmp_path, "step", 1.0)
    (tmp_path / "gemm.txt").write_text("it failed")
    assert claims.main([str(tmp_path)]) == 1
    assert "- gemm: left no result" in (tmp_path / "claims.md").read_text()
    with pytest.raises(SystemExit, match="usage"):
        claims.main([str(tmp_path / "nowhere")])


def test_results_of_several_commits_say_so() -> None:
    dates = [f"2026-11-{day}" for day in (29, 27, 28)]
    results = {date: {"environment": {"date": date, "commit": f"c{date[-1] > '8'}", "cores": 2}}
               for date in dates}  # fmt: skip
    assert claims.machine(results) == [
        "date: 2026-11-27 to 2026-11-29", "commit: cFalse, cTrue", "cores: 2", ""
    ]  # fmt: skip


def test_the_script_runs_every_benchmark_with_keys_that_exist() -> None:
    """So every benchmark has a configuration that fits, too."""
    lines = re.findall(r"^(\S+) +\| (\S+) ?(.*)$", SCRIPT.read_text(), re.MULTILINE)
    assert {name for _, name, _ in lines} == set(BENCHES)
    assert len({label for label, _, _ in lines}) == len(lines)
    for _, name, rest in lines:
        bench_config(name, *[word for word in rest.split() if "=" in word])


def reproduce(folder: Path, *words: str, meanwhile: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with a stand-in for the interpreter, which writes what a benchmark would, and
    notes that it was started; `meanwhile` is what its shell does besides.
    """
    stand_in = folder / "python"
    stand_in.write_text(
        f"""#!/bin/sh
case "$*" in
*claims.py*) exec {sys.executable} "$@" ;;
esac
for word; do file=$word; done
echo "$4" >>"{folder}/started"
echo '{{"bench": "x", "environment": {{}}, "records": [], "checks": []}}' >"$file"
echo "columns $COLUMNS: x 1 ≤ 2 ok"
{meanwhile}
"""
    )
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in), "OUT": str(folder / "out")}
    return subprocess.run(
        ["bash", str(SCRIPT), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def results(folder: Path) -> list[str]:
    return sorted(file.stem for file in (folder / "out").glob("*.json"))


def test_the_script_leaves_results_and_claims(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "allreduce", "step-")
    assert done.returncode == 0, done.stderr
    assert "columns 80: x 1 ≤ 2 ok" in done.stdout
    labels = ["allreduce-1gbit", "allreduce-node", "allreduce_words", "step-kernel"]
    assert results(tmp_path) == labels
    assert (tmp_path / "out" / "claims.md").exists()


def test_long_ones_are_asked_for(tmp_path: Path) -> None:
    assert reproduce(tmp_path, "--long", "allreduce-1").returncode == 0
    assert results(tmp_path) == ["allreduce-100mbit", "allreduce-1gbit"]


def test_an_interrupted_run_keeps_what_is_finished_and_is_resumed(tmp_path: Path) -> None:
    """The benchmark during which it is interrupted leaves no result, the one before it does."""
    interrupt = 'case "$*" in *openmpi*) kill -INT $PPID; exit 130 ;; esac'
    done = reproduce(tmp_path, "collectives", meanwhile=interrupt)
    assert done.returncode == 130
    assert results(tmp_path) == ["collectives-mpich"]
    assert "collectives-openmpi: left no result" in (tmp_path / "out" / "claims.md").read_text()
    done = reproduce(tmp_path, "--resume", str(tmp_path / "out"), "collectives")
    assert done.returncode == 0, done.stdout
    assert results(tmp_path) == ["collectives-mpich", "collectives-openmpi"]
    assert (tmp_path / "started").read_text().split() == ["collectives"] * 3  # none of them again


def test_only_a_folder_is_resumed(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "--resume", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "a folder that holds results" in done.stderr
