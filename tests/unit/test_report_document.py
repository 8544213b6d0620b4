"""`dist-ml report --html` and `--markdown`: whole, offline, and with nothing of users as markup."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_ml.cli import main
from dist_ml.config.convert import to_mapping
from dist_ml.errors import ConfigError
from dist_ml.pipeline_parallel import timeline_file
from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedules import family
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.timeline_file import MeasuredStep
from tests.experiments import config_of
from tests.unit import test_experiment_report as experiment_reports
from tests.unit.test_report import make_run

VOID = {"meta", "link", "br", "img"}
EVIL = "<b onload=x>$a&\"'"


class Page(HTMLParser):
    """A page read as a browser would: every tag closed in its turn, every id once, and nothing that
    is not in it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.asked: list[str] = []  # what attributes refer to
        self.feed(file.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "action", "data", "xlink:href"):
                self.asked.append(value or "")
            self.asked += re.findall(r"url\(([^)]*)\)", value or "")


def page_of(folder: Path, *more: str) -> Page:
    file = folder / "report.html"
    assert main.main(["report", str(folder), "--html", str(file), *more]) == 0
    assert "://" not in re.sub(r"\w+://in\.a\.value", "", file.read_text())
    page = Page(file)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert {each.removeprefix("#") for each in page.asked} <= set(page.ids)
    assert all(each.startswith("#") for each in page.asked)
    assert "script" not in page.tags
    return page


def with_pipeline(folder: Path) -> None:
    """The last step of a run on two stages, as it leaves it."""
    schedule = family.make("one_f_one_b", Request(2, 3))
    timeline = dry_run(schedule, Costs.uniform(2, message=0.5))
    timeline_file.write(folder / "timeline.json", MeasuredStep.of(schedule, timeline.ranks))


def make_runs(folder: Path) -> None:
    words = {
        "words_by_axis": {"data": 150.0, "operator": 7.0},
        "planned_words_by_axis": {"data": 100.0},
        "words_sent": 1500,
        "messages": 3,
        "predicted": [
            {"name": "step", "unit": "s", "predicted": 0.01, "measured": 0.015, "why": "<s>io</s>"}
        ],
        "environment": {"processor": "<i>fast</i>", "cores": 2},
    }
    make_run(folder / "a", 2, 0.1, 100.0, **words)
    with_pipeline(make_run(folder / EVIL, 4, 0.2, 150.0))
    broken = {
        "words_by_axis": 3,
        "seconds_by_phase": {"forward": "x"},
        "environment": [],
        "not_predicted": "no <tt>",
    }
    make_run(folder / "c", 8, 0.1, 1.0, **broken, status="failed", error="<u>bad</u>")
    config = yaml.safe_load((folder / "a" / "config.yaml").read_text())
    config["data"] = {"root": "<img src=http://in.a.value onerror=y>"}
    (folder / "a" / "config.yaml").write_text(yaml.safe_dump(config))


def make_experiment(folder: Path) -> None:
    rates = {p: [100 * p / (1 + 0.1 * (p - 1))] for p in (1, 2, 4, 8)}
    told = experiment_reports.made(experiment_reports.measured(folder, rates))
    (folder / "report.json").write_text(json.dumps(told))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(to_mapping(config_of())))


def test_a_page_is_whole_and_shows_names_as_they_are(tmp_path: Path) -> None:
    make_runs(tmp_path)
    page = page_of(tmp_path)
    assert not {"b", "i", "u", "s", "tt", "img"} & set(page.tags)
    for text in (EVIL, "<img src=http://in.a.value onerror=y>", "<u>bad</u>", "<i>fast</i>"):
        assert text in page.text
    lines = [" ".join(line.split()) for line in page.text.splitlines()]
    assert "adata100150+50.00%" in lines
    assert "aoperator-7-" in lines
    assert "astep10 ms15 ms+50%<s>io</s>" in lines
    assert "c: not predicted: no <tt>" in lines


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_plots_are_within_or_beside(form: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    make_runs(tmp_path)
    make_experiment(tmp_path / "experiment")
    pictures = {"loss", "step_time", "schedule_1", "experiment_1_speed_up",
                "experiment_1_efficiency", "experiment_1_samples_per_second",
                "experiment_1_communication"}  # fmt: skip
    if form == "html":
        page = page_of(tmp_path)
        assert page.tags.count("svg") == len(pictures)
        assert {name.partition("-")[0] for name in page.ids} >= pictures
        assert "Universal Scalability Law" in page.text
        return
    assert main.main(["report", str(tmp_path), "--markdown", str(tmp_path / "told.md")]) == 0
    text = (tmp_path / "told.md").read_text()
    assert set(re.findall(r"\(<(.*)>\)", text)) == {f"told_{name}.png" for name in pictures}
    assert all((tmp_path / f"told_{name}.png").stat().st_size for name in pictures)
    assert "\\<img src=http" in text
    assert "<b onload" not in text.replace("\\<b onload", "")


def test_without_matplotlib_the_page_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runs(tmp_path)
    monkeypatch.delattr("dist_ml.cli.plots", raising=False)
    monkeypatch.setitem(sys.modules, "dist_ml.cli.plots", None)
    page = page_of(tmp_path)
    assert "svg" not in page.tags
    assert "pip install 'matplotlib" in page.text
    assert "bubble" in page.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "can't be read"),
        ("[]", "holds no report"),
        ('{"experiment": {"name": 1}}', "no report"),
    ],
)
def test_a_broken_report_of_an_experiment_is_named(text: str, words: str, tmp_path: Path) -> None:
    make_runs(tmp_path)
    make_experiment(tmp_path / "experiment")
    (tmp_path / "experiment" / "report.json").write_text(text)
    page = page_of(tmp_path)
    assert str(tmp_path / "experiment" / "report.json") in page.text
    assert words in page.text
    assert EVIL in page.text


@pytest.mark.parametrize("flag", ["--html", "--markdown"])
def test_a_file_that_cannot_be_written(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_runs(tmp_path / "runs")
    file = tmp_path / "nowhere" / "report"
    words: list[Any] = ["report", str(tmp_path / "runs"), flag, str(file)]
    assert main.main(words) == ConfigError.exit_status
    assert f"{flag} {file} can't be written (No such file" in capsys.readouterr().err
