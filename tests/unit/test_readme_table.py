"""The README's table is what `benchmarks/readme_table.py` makes, whatever was measured."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme_table
from benchmarks.readme_table import Row, figures, rows

ROW = Row("a step", "{over bare:.2f} of its time", "bare", "step")


@pytest.mark.parametrize(
    ("row", "values", "shown"),
    [
        pytest.param(ROW, {"over bare": 1.038}, "1.04 of its time", id="measured"),
        pytest.param(ROW, None, "not measured yet", id="unknown"),
    ],
)
def test_figures(row: Row, values: dict[str, float] | None, shown: str) -> None:
    assert figures(row, values) == shown


def test_a_check_of_another_name_is_no_silent_gap() -> None:
    with pytest.raises(SystemExit, match=r"step\.json has no check 'over bare'"):
        figures(ROW, {"over": 1.0})


def test_figures_come_from_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = {"name": "step over the best bare loop", "value": 1.0125}
    (tmp_path / "step.json").write_text(json.dumps({"checks": [check]}))
    assert readme_table.main([str(tmp_path)]) == 0
    assert "| 1.012 of its time | the faster of bare" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="usage"):
        readme_table.main([str(tmp_path / "nowhere")])


def test_the_table_is_written_over_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    head = readme_table.table({})[0]
    readme.write_text(f"before\n\n{head}\n|---|\n| old |\n\nafter\n| another | table |\n")
    assert readme_table.main(["--write"], readme) == 0
    lines = readme.read_text().splitlines()
    assert lines[:3] == ["before", "", head]
    assert "| old |" not in lines
    assert lines[-3:] == ["", "after", "| another | table |"]
    assert len(lines) == 2 + 2 + len(rows()) + 3


def test_the_readme_has_these_rows() -> None:
    """Its figures are of the form that a row has."""
    lines = readme_table.README.read_text().splitlines()
    start = lines.index("| " + " | ".join(readme_table.HEADINGS) + " |") + 2
    for row, line in zip(rows(), lines[start:], strict=False):
        what, measured, against, command = line.strip("| ").split(" | ")
        assert (what, against) == (row.what, row.against)
        assert command == f"`{readme_table.command_of(row.label)}`"
        text = re.split(r"\{[^{}]*\}", row.measured)
        form = r"[-+]?[\d.]+(e-?\d+)?%?".join(map(re.escape, text))
        known = figures(row, None)
        assert measured == known or re.fullmatch(form, measured)
    assert not lines[start + len(rows())].startswith("|")


def test_a_row_without_a_result_keeps_what_the_readme_says() -> None:
    first = readme_table.rows()[0]
    command = f"`{readme_table.command_of(first.label)}`"
    text = f"| {first.what} | 7 of its time | somebody | {command} |\n"
    shown = readme_table.shown_in(text)
    assert readme_table.table({}, shown)[2].split(" | ")[1] == "7 of its time"
    assert readme_table.table({}, {})[2].split(" | ")[1] != "7 of its time"
    measured = {first.label: dict.fromkeys(first.checks, 0.5)}
    assert readme_table.table(measured, shown)[2].split(" | ")[1].startswith("0.500")
