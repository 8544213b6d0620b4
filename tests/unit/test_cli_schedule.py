"""`dist-ml schedule`: tables, charts, files, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_ml.cli.main import main
from dist_ml.cli.timeline_chart import chart
from dist_ml.errors import DataError
from dist_ml.pipeline_parallel import timeline_file
from dist_ml.pipeline_parallel.dry_run import Costs, TimedAction, Timeline, dry_run
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedule import Action
from dist_ml.pipeline_parallel.schedules import csv_file, family
from dist_ml.pipeline_parallel.schedules.request import Request


def lines(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> list[str]:
    assert main(["schedule", *words]) == status
    captured = capsys.readouterr()
    return (captured.out + captured.err).splitlines()


def test_a_schedule_is_told_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """Chimera on 4 stages and as many micro-batches: 16 units and a bubble of 1/4 (Li and Hoefler,
    SC 2021, with B = 2F); each action stands in the chart as often as it is long.
    """
    told = lines(capsys, "name=chimera", "stages=4", "microbatches=4")
    assert told[0].split() == ["schedule", "chimera,", "4", "stages", "on", "4", "ranks"]
    assert "16 time units" in told[1]
    assert "25.0 %" in told[2]
    rows = [line for line in told if line.startswith("rank ")]
    assert rows[0] == "rank 0  F0F2··F1B1--F3B3--··B0--····B2--"
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("words", "ranks", "stages"),
    [
        (["name=interleaved", "stages=8"], 4, 8),
        (["name=interleaved", "stages=9", "chunks=3"], 3, 9),
        (["name=zb_v", "stages=4"], 2, 4),
        (["name=gpipe", "stages=3"], 3, 3),
        (["name=dualpipe_v", "ranks=2"], 2, 4),
        (["name=one_f_one_b"], 4, 4),
    ],
)
def test_stages_or_ranks_say_how_many_there_are(
    capsys: pytest.CaptureFixture[str], words: list[str], ranks: int, stages: int
) -> None:
    told = lines(capsys, *words)
    assert f"{stages} stages on {ranks} ranks" in told[0]
    assert len([line for line in told if line.startswith("rank ")]) == ranks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name=chimera", "stages=3"], "even number of stages"),
        (["name=interleaved", "stages=7"], "use 8"),
        (["name=gpipe", "stages=4", "ranks=3"], "use stages=3"),
        (["name=nope"], "is none of"),
        (["name=zb_v", "stages=8", "microbatches=2"], "use 7 micro-batches"),
        (["costs=[1]"], "two or three numbers"),
        (["costs=[0,0]"], "not all 0"),
        (["costs=[1e308,1]"], "from 0 to 1e+12"),
        (["microbatches=100000000"], "use fewer micro-batches"),
        (["name=interleaved", "chunks=100000000"], "use fewer micro-batches"),
        (["plot=/tmp"], "must end in one of .svg, .png, .pdf"),
        (["message=-1"], "message=-1"),
        (["ranks=0"], "ranks=0 must be at least 1"),
        (["name=file"], "needs a CSV"),
        (["run=/nowhere"], "does not exist"),
        (["csv=/nowhere/x.csv"], "can't be written"),
    ],
)
def test_what_is_refused_says_what_would_do(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    told = lines(capsys, *words, status=2)
    assert message in told[-1]
    assert told[-1].startswith("error: ")


def test_a_written_schedule_is_read_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "zb.csv"
    first = lines(capsys, "name=zb_h1", "stages=3", "microbatches=5", f"csv={file}")
    again = lines(capsys, "name=file", f"file={file}")
    assert [line for line in first if line.startswith("rank ")] == [
        line for line in again if line.startswith("rank ")
    ]
    schedule = csv_file.read_csv(file)
    prove(schedule)
    assert (schedule.num_ranks, schedule.num_microbatches) == (3, 5)


def test_a_picture_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra")
    file = tmp_path / "x.svg"
    lines(capsys, "name=gpipe", "stages=2", f"plot={file}")
    assert "<svg" in file.read_text()
    told = lines(capsys, "name=gpipe", "stages=2", f"plot={tmp_path}/x.nope", status=2)
    assert "must end in one of .svg, .png, .pdf" in told[-1]
    told = lines(capsys, "name=gpipe", "stages=2", f"plot={tmp_path}/none/x.svg", status=2)
    assert "choose a folder that is there" in told[-1]


class TestChart:
    def timeline(self) -> Timeline:
        actions = (
            TimedAction(Action(0, "F", 0), 0.0, 1.0),
            TimedAction(Action(0, "B", 0), 2.0, 4.0),
        )
        return Timeline((actions, ()))

    def test_labels_where_there_is_room_kinds_where_not(self) -> None:
        assert chart(self.timeline(), 80) == ["rank 0  F0··B0--", "rank 1  ········"]
        forward = [TimedAction(Action(0, "F", m), float(m), m + 1.0) for m in range(30)]
        long = Timeline((tuple(forward),))
        (row,) = chart(long, 60)
        assert row == "rank 0  " + "F" * 30  # labels of three letters would take 90

    @pytest.mark.parametrize("width", [20, 40, 79, 200])
    def test_no_line_is_wider_than_asked_for(self, width: int) -> None:
        schedule = family.make("one_f_one_b", Request(8, 32))
        rows = chart(dry_run(schedule, Costs.uniform(8)), width)
        assert len(rows) == 8
        assert max(map(len, rows)) <= width

    def test_nothing_to_draw(self) -> None:
        assert chart(Timeline(((), ())), 40) == ["rank 0  ", "rank 1  "]


class TestMeasuredStep:
    def step(self, tmp_path: Path) -> Path:
        """A run folder whose last step took 10 ms a forward pass and 20 ms a backward one."""
        schedule = family.make("one_f_one_b", Request(2, 2))
        plan = dry_run(schedule, Costs.uniform(2, 0.01, 0.02))
        step = timeline_file.MeasuredStep.of(schedule, plan.ranks)
        timeline_file.write(tmp_path / "timeline.json", step)
        return tmp_path

    def test_it_comes_back_with_the_times_of_its_actions(self, tmp_path: Path) -> None:
        found = timeline_file.read(self.step(tmp_path) / "timeline.json")
        costs = found.mean_costs()
        assert costs.forward == pytest.approx((0.01, 0.01))
        assert costs.input_backward == pytest.approx((0.01, 0.01))
        assert costs.weight_backward == pytest.approx((0.01, 0.01))
        assert dry_run(found.schedule, costs).makespan == pytest.approx(found.timeline.makespan)

    def test_the_command_draws_it_below_the_plan(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        told = lines(capsys, f"run={self.step(tmp_path)}")
        rows = [line for line in told if line.startswith("rank ")]
        assert rows[:2] == rows[2:]  # measured as planned
        assert "90 ms" in told[1]

    @pytest.mark.parametrize("text", ["", "[]", '{"ranks": [[["0X0", 0, 1]]]}', "{" * 2000])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "timeline.json"
        file.write_text(text)
        with pytest.raises(DataError, match="holds no measured step"):
            timeline_file.read(file)

    @pytest.mark.parametrize(
        "changed",
        [
            {"ranks": [[], []]},
            {"ranks": [[["0F0", 0, 1], ["0B0", 2, float("nan")]], []]},
            {"ranks": [[["1F0", 0, 1], ["0F0", 1, 2]], []]},
            {"pipes": []},
            {"pipe_of": []},
        ],
    )
    def test_a_step_that_nobody_could_have_run_is_refused(
        self, tmp_path: Path, changed: dict[str, Any]
    ) -> None:
        file = self.step(tmp_path) / "timeline.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
        with pytest.raises(DataError, match="holds no measured step"):
            timeline_file.read(file)

    def test_clocks_may_begin_anywhere(self, tmp_path: Path) -> None:
        file = self.step(tmp_path) / "timeline.json"
        content = json.loads(file.read_text())
        content["ranks"] = [[[a, s + 5, e + 5] for a, s, e in rank] for rank in content["ranks"]]
        file.write_text(json.dumps(content))
        assert timeline_file.read(file).timeline.makespan == pytest.approx(0.09)
