"""The start-up benchmark: what is counted, and what its checks make of the counts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dist_ml.bench import counted_start, startup
from dist_ml.bench.counted_start import CONFIGURATIONS, COUNTED, LISTED, MADE, MODULES, OTHERS
from dist_ml.bench.startup import Start
from dist_ml.errors import ConfigError
from tests.unit.bench_worlds import bench_config, failed


@pytest.mark.parametrize(
    ("event", "path", "kind"),
    [
        ("open", "/own/project/model.py", MODULES),
        ("open", b"/own/__pycache__/model.pyc", MODULES),
        ("open", f"{sys.prefix}/lib/x.dist-info/METADATA", MODULES),
        ("open", "/own/configs/train.yaml", CONFIGURATIONS),
        ("open", "/data/x.npy", OTHERS),
        ("open", "/run/log/rank-0000.log", OTHERS),
        ("open", 3, None),
        ("open", "/proc/self/status", None),
        ("open", f"{tempfile.gettempdir()}/x", None),
        ("open", f"{tempfile.gettempdir()}/given/x", OTHERS),
        ("os.mkdir", "/run/log", MADE),
        ("os.mkdir", f"{tempfile.gettempdir()}/torchinductor", None),
        ("os.listdir", None, LISTED),
        ("os.scandir", "/dev/shm", None),
        ("import", "torch", None),
    ],
)
def test_what_is_counted(
    event: str, path: Any, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    folder = f"{tempfile.gettempdir()}/given"
    assert counted_start.kind_of(event, (path, "r", os.O_RDONLY), folder) == kind


def counts(**changed: int) -> dict[str, int]:
    usual = dict.fromkeys(COUNTED, 0) | {MODULES: 1000, OTHERS: 2}
    return usual | {key.replace("_", " "): value for key, value in changed.items()}


def starts(**of_last: int) -> list[Start]:
    first = counts(configurations_opened=9, folders_made=3, other_files_opened=9)
    return [
        Start(1, 3.0, 1.0, [first]),
        Start(3, 4.0, 1.0, [first, counts(), counts(**of_last)]),
    ]


@pytest.mark.parametrize(
    ("of_last", "what"),
    [
        ({}, []),
        ({"configurations_opened": 1}, ["configurations opened by ranks but rank 0"]),
        ({"folders_made": 1}, ["folders made by ranks but rank 0"]),
        ({"other_files_opened": 6}, ["files but modules opened by ranks but rank 0"]),
        ({"modules_opened": 1060}, ["modules opened by a rank over rank 0's"]),
    ],
)
def test_one_rank_that_asks_for_more_is_seen(of_last: dict[str, int], what: list[str]) -> None:
    made = startup.checks(starts(**of_last))
    assert failed(made) == what
    assert all(len(str(check)) <= 80 for check in made)


def test_a_row_for_each_number_of_ranks() -> None:
    alone, several = startup.records(starts(folders_made=2))
    assert (alone["ranks"], alone["but_training"], alone["folders made, others"]) == (1, 2.0, None)
    assert (several["folders made, rank 0"], several["folders made, others"]) == (3, 2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ranks=[]", "must be 1 or more"),
        ("hosts=0", "must be 1 or more"),
        ("ranks=[1]", "must hold one above 1"),
        ("time_limit_seconds=0", "must be above 0"),
    ],
)
def test_what_cannot_be_started_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench_config("startup", override)


def test_counts_are_left_at_the_end(tmp_path: Path) -> None:
    module = tmp_path / "counted_program.py"
    module.write_text("import os, sys; os.mkdir(sys.argv[1]); open('x.yaml', 'w').close()")
    program = ["-m", "dist_ml.bench.counted_start", str(tmp_path), "counted_program"]
    own = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}", "PMI_RANK": "3"}
    done = subprocess.run(
        [sys.executable, *program, str(tmp_path / "made")],
        env={**os.environ, **own},
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0
    found = json.loads((tmp_path / "3.json").read_text())
    assert (found[MADE], found[CONFIGURATIONS], found[OTHERS]) == (1, 1, 0)
