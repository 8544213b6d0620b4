"""compare_checkouts.py: what it refuses, and what turns it red."""

import json
from pathlib import Path

import pytest

from benchmarks import compare_checkouts


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        pytest.param(["--cases", "step1,step9"], "'step9' is none of step1, step2", id="case"),
        pytest.param(["--rounds", "0"], "0 rounds; at least 1", id="rounds"),
        pytest.param(["--mpi", "lam"], "invalid choice: 'lam'", id="wheel"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare_checkouts.main([str(tmp_path), *argv])
    assert words in capsys.readouterr().err


def test_a_folder_without_the_package_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no checkout: it holds no dist_ml package"):
        compare_checkouts.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("ours", "theirs", "step"),
    [
        pytest.param(["0x1p0", "0x1p1"], ["0x1p0", "0x1p1"], None, id="same"),
        pytest.param(["0x1p0", "0x1p1"], ["0x1p0", "0x1.0000000000001p1"], 1, id="one bit"),
        pytest.param(["0x1p0"], ["0x1p0", "0x1p1"], 1, id="one run is shorter"),
        pytest.param([], ["0x1p0"], 0, id="one run is empty"),
    ],
)
def test_the_first_different_loss_is_found(
    ours: list[str], theirs: list[str], step: int | None
) -> None:
    assert compare_checkouts.first_difference(ours, theirs) == step


@pytest.mark.parametrize(("factor", "held"), [(1.0, True), (1.01, True), (1.03, False)])
def test_a_slower_checkout_is_told(
    factor: float, held: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One round in five is three times slower, for both: the pairs' median doesn't move."""
    theirs = [1.0, 1.0, 3.0, 1.0, 1.0]
    ours = [factor * seconds for seconds in theirs]
    (tmp_path / "dist_ml").mkdir()
    (tmp_path / "dist_ml" / "__init__.py").touch()

    def compare_case(case: str, *_: object) -> list[dict[str, object]]:
        return [compare_checkouts._record(case, "mpich", "step", ours, theirs, 1.02)]

    monkeypatch.setattr(compare_checkouts, "compare_case", compare_case)
    file = tmp_path / "found.json"
    argv = [str(tmp_path), "--cases", "step2", "--json", str(file)]
    assert compare_checkouts.main(argv) == (0 if held else 1)
    record = json.loads(file.read_text())["records"][0]
    assert record["ratio"] == pytest.approx(factor)
    assert record["held"] is held
