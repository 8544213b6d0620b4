"""compare_checkouts.py starts the ranks of two checkouts in turn."""

from pathlib import Path

import pytest

from benchmarks import compare_checkouts
from benchmarks.compare_checkouts import OURS, THEIRS
from dist_ml.errors import MachineError
from dist_ml.launch import mpi_installation


def _wheel() -> str:
    try:
        return mpi_installation.find("mpich").name
    except MachineError as error:
        pytest.skip(str(error))


def test_two_worlds_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    """This checkout against itself, one turn each after the warm-up."""
    checkouts = {OURS: compare_checkouts.THIS, THEIRS: compare_checkouts.THIS}
    (record,) = compare_checkouts.compare_case("step1", checkouts, 1, 1, _wheel())
    assert 0.05 < record["ratio"] < 20
    assert record["this_us"] > 0
    assert "step1, mpich, step:" in capsys.readouterr().out


def test_a_world_that_fails_is_told_at_once() -> None:
    with pytest.raises(SystemExit, match="the this checkout's ranks failed"):
        compare_checkouts.compare_case(
            "step1", {OURS: Path("/usr"), THEIRS: compare_checkouts.THIS}, 1, 1, _wheel()
        )
