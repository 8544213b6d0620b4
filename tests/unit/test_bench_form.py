"""The one form of all benchmarks."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from dist_ml import bench
from dist_ml.bench.benches import BENCHES, PARTS
from dist_ml.bench.form import Check, Result, least, most
from dist_ml.bench.plots import loss_against_seconds
from dist_ml.bench.worlds import ThisWorld
from dist_ml.cli import bench as command
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError


def test_a_check_says_its_name_value_limit_and_outcome() -> None:
    assert str(Check("step over bare", 1.03, 1.05, "lower")) == "step over bare 1.03 ≤ 1.05 ok"
    assert str(Check("speed-up", 4.0, 4.5, "higher")) == "speed-up 4 ≥ 4.5 FAILED"
    assert not Check("not a number", float("nan"), 1.0, "lower").passed


def test_json_holds_environment_records_and_checks() -> None:
    result = Result("x", [{"bytes": 8}], [Check("a", 1.0, 2.0, "higher")])
    assert json.loads(json.dumps(result.to_json({"cores": 2}))) == {
        "bench": "x",
        "environment": {"cores": 2},
        "records": [{"bytes": 8}],
        "checks": [{"name": "a", "value": 1.0, "limit": 2.0, "better": "higher", "passed": False}],
    }


def test_the_worst_of_values_sees_nan() -> None:
    assert (most([1.0, 3.0]), least([1.0, 3.0])) == (3.0, 1.0)
    for order in ([1.0, float("nan")], [float("nan"), 1.0]):
        assert not Check("most", most(order), 9.0, "lower").passed
        assert not Check("least", least(order), 0.0, "higher").passed


def test_check_names_say_what_they_check_and_not_which_issue() -> None:
    """No letters and numbers of work items, in any string of a benchmark."""
    for file in sorted(Path(bench.__file__).parent.glob("*.py")):
        assert not re.findall(r"\"[A-D]\d ", file.read_text()), file.name


def test_no_two_benchmarks_name_a_part_alike() -> None:
    parts = [part for each in BENCHES.values() for part in each.parts]
    assert sorted(parts) == sorted(PARTS)


def test_the_command_shows_writes_and_checks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result(
        "step",
        [{"step": "dist_ml", "milliseconds": 1.5}],
        [Check("step over bare", 1.2, 1.05, "lower")],
    )
    monkeypatch.setitem(
        BENCHES, "step", dataclasses.replace(BENCHES["step"], run=lambda *_: result)
    )
    file = tmp_path / "result.json"
    assert command.main(["step", "--json", str(file)]) == 0
    assert command.main(["step", "--check"]) == 1
    assert "step over bare 1.2 ≤ 1.05 FAILED" in capsys.readouterr().out
    assert json.loads(file.read_text())["checks"][0]["passed"] is False
    with pytest.raises(ConfigError, match="unknown benchmark 'stepp'"):
        command.main(["stepp"])
    with pytest.raises(ConfigError, match=r"unknown key roundss=3 \(did you mean rounds\?\)"):
        command.main(["step", "roundss=3"])


@pytest.mark.parametrize("ranks", ["0", "-3"])
def test_no_ranks_at_all_are_refused(ranks: str) -> None:
    with pytest.raises(ConfigError, match=f"-n: {ranks} "):
        command.main(["step", "-n", ranks])


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(seconds: str) -> None:
    with pytest.raises(ConfigError, match=f"--time-limit: {seconds} is not a time limit"):
        command.main(["step", "--time-limit", seconds])


def test_on_ranks_that_exist_other_ranks_are_refused() -> None:
    world = ThisWorld(Communicator(Loopback()), {"double": lambda _, arguments: 2 * arguments["x"]})
    assert world.measure("double", {"x": 4}) == 8
    with pytest.raises(ConfigError, match="wants 3 ranks of mpich"):
        world.measure("double", {"x": 4}, ranks=3, mpi="mpich")
    with pytest.raises(ConfigError, match="needs 4 hosts with links of 1gbit, but its ranks were"):
        world.network(4, "1gbit")


def test_loss_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    records = [
        {"candidate": name, "seconds": i, "loss": 2.0**-i}
        for name in ("dense", "oktopk")
        for i in range(5)
    ]
    loss_against_seconds(records, "2 hosts", str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="can't be written"):
        loss_against_seconds(records, "2 hosts", str(tmp_path / "missing" / "curve.png"))
