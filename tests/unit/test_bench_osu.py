"""`dist-ml bench --format osu`: text that programs made for the OSU micro-benchmarks read."""

import re
from typing import Any

import pytest

from dist_ml.bench import allreduce, collectives, osu
from dist_ml.bench.form import Result
from dist_ml.cli import main
from dist_ml.errors import ConfigError
from tests.unit.bench_worlds import GivenWorlds

FOUND = {
    "collectives": [
        {"dist_ml": [2e-6, 1.5e-6, 3e-6], "mpi4py": [1e-6] * 3},
        {"dist_ml": [0.25] * 3, "mpi4py": [0.125] * 3},
    ],
    "recorder": {"call": [1e-7]},
}


def tables(text: str) -> list[dict[int, float]]:
    """As a script reads them: a header, then sizes and latencies until something else."""
    header = r"\n# OSU MPI Allreduce Latency Test v[\d.]+\n(?:#.*\n)*# Size +Avg Latency\(us\)\n"
    parts = re.split(header, text)[1:]
    rows = re.compile(r"^(\d+) +(\d+\.\d\d)$", re.MULTILINE)
    return [{int(size): float(latency) for size, latency in rows.findall(part)} for part in parts]


def test_the_command_prints_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dist_ml.bench.worlds.StartedWorlds", lambda *_: GivenWorlds(FOUND))
    words = ["bench", "--format", "osu", "collectives", "sizes_bytes=[8,268435456]"]
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert tables(out) == [{8: 2.0, 268435456: 250000.0}, {8: 1.0, 268435456: 125000.0}]
    found = re.search(r"^8\s+(?P<latency>\S+)", out, re.MULTILINE)  # ReFrame's own check
    assert found is not None
    assert found["latency"] == "2.00"
    assert all(line[:1] in ("#", "") or line[0].isdigit() for line in out.splitlines())


def test_columns_are_where_theirs_are() -> None:
    text = osu.allreduce_text([osu.Series("x", {4: 0.93, 1 << 20: 1234.5})])
    assert text.splitlines()[-3:] == [
        "# Size       Avg Latency(us)",
        "4                       0.93",
        "1048576              1234.50",
    ]


def test_each_algorithm_on_each_world_has_a_table() -> None:
    usual = {"network": "node", "hosts": 1, "setting": "tuned"}
    records: list[dict[str, Any]] = [
        {**usual, "ranks": 2, "mpi": mpi, "algorithm": name, "bytes": size, "ms": size / 1000}
        for size in (4, 8)
        for mpi in ("mpich", "openmpi")
        for name in ("ring", "auto")
    ]
    found = allreduce.latencies(Result("allreduce", records))
    assert [each.title for each in found][:2] == [
        "ring, mpich, tuned, 2 ranks, hosts: 1",
        "auto, mpich, tuned, 2 ranks, hosts: 1",
    ]
    assert tables(osu.allreduce_text(found)) == [{4: 4.0, 8: 8.0}] * 4
    assert collectives.BENCH.latencies is not None


def test_other_benchmarks_have_no_such_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "--format", "osu", "step"]) == ConfigError.exit_status
    assert "use it with collectives or allreduce" in capsys.readouterr().err
