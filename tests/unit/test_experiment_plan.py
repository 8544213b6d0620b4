"""Which points an experiment has, and what is refused before any of them runs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dist_ml.cli import arguments, compose, experiment, main
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import ConfigError
from dist_ml.experiment import points
from dist_ml.experiment.axes import combinations, per_rank_overrides, spell
from dist_ml.experiment.points import Point
from dist_ml.experiment.training_job import TrainingJob, folder_name
from tests.experiments import config_of, point_of

SHIPPED = ("exchanges", "schedules", "strong", "weak")


# --- axes


def test_points_are_the_product_of_the_axes() -> None:
    config = config_of(
        axes={"ranks": [1, 2], "exchange": {"ours": ["allreduce=ring", "allreduce.wire=bf16"],
                                             "plain": []}},
        fixed={"epochs": 1, "model.hidden": [8, 9]},
    )  # fmt: skip
    found = combinations(config)
    assert [dict(each.settings) for each in found] == [
        {"ranks": "1", "exchange": "ours"},
        {"ranks": "1", "exchange": "plain"},
        {"ranks": "2", "exchange": "ours"},
        {"ranks": "2", "exchange": "plain"},
    ]
    fixed = ("epochs=1", "model.hidden=[8,9]")
    assert found[2].overrides == (*fixed, "ranks=2", "allreduce=ring", "allreduce.wire=bf16")
    assert found[3].overrides == (*fixed, "ranks=2")


def test_what_grows_with_the_ranks() -> None:
    config = config_of(kind="weak", per_rank={"batch_size": 32, "data.num_train": 1000})
    assert per_rank_overrides(config, 4) == ("batch_size=128", "data.num_train=4000")


@pytest.mark.parametrize(
    "value",
    ["plain", "a b", "it's", "a\\", "\\'", "[x", "a,b", "", "ä", "null", "True", "nan", "/a/b.c",
     "a=b", None, True, False, 3, 0.5, 1e-8, [], [1, "a b"], {"a": 1, "b": [None]}],
)  # fmt: skip
def test_values_are_spelled_so_that_hydra_reads_them_again(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={spell(value)}")
    read = override.value()
    read = str(read) if isinstance(value, str) else read
    assert read == value
    assert type(read) is type(value)


def test_numbers_that_yaml_reads_as_text_stay_numbers() -> None:
    assert spell("1e-4") == "1e-4"


def test_too_many_points() -> None:
    config = config_of(axes={"seed": list(range(40)), "epochs": list(range(1, 40))})
    with pytest.raises(ConfigError, match="1,560 points; an experiment has at most 1,000"):
        combinations(config)


# --- the configuration


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"axes": {}}, "no points"),
        ({"axes": {"ranks": []}}, r"axes.ranks=\[\] has an empty value or none"),
        ({"axes": {"name": [""]}}, "has an empty value or none"),
        ({"axes": {" ": [1]}}, "axes has one without a name"),
        ({"axes": {"ranks": 2}}, "axes.ranks=2 must be a list"),
        ({"axes": {"ranks": [2, 2]}}, "axes.ranks holds 2 more than once"),
        ({"axes": {"x": {"a": "lr=1"}}}, "axes.x.a=lr=1 must be a list of overrides"),
        ({"axes": {"x": {"a": ["=1"]}}}, "must be a list of overrides"),
        ({"axes": {"x": {"": ["a=1"]}}}, "must be a list of overrides under a name"),
        ({"axes": {"optimizer": {"lr": [0.1]}}}, "'axes={optimizer.lr:"),
        ({"axes": {"x": {"a": ["folder=b"]}}}, "axes.x.a sets folder"),
        ({"axes": {"folder": ["a"]}}, "folder can't be set or varied"),
        ({"fixed": {"folder": "a"}}, "folder can't be set or varied"),
        ({"fixed": {"ranks": 2}}, "axes.ranks varies what fixed sets, too"),
        ({"fixed": {"optimizer": {"lr": 1}}}, "a key with dots is written whole"),
        ({"per_rank": {"batch_size": 1}}, "has no effect with kind=strong"),
        ({"kind": "weak", "per_rank": {"batch_size": 0}}, "per_rank.batch_size=0 must be at least"),
        ({"kind": "weak", "per_rank": {"ranks": 1}}, "per_rank.ranks is set elsewhere"),
        ({"name": " "}, "name is empty"),
        ({"base": ""}, "base is empty"),
        ({"folder": ""}, "folder is empty"),
        ({"repetitions": 0}, "repetitions=0 must be from 1"),
        ({"time_limit_seconds": 0}, "time_limit_seconds=0 must be above 0"),
        ({"time_limit_seconds": float("inf")}, "=inf must be above 0 and at most"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"most_ranks": 0}, "most_ranks=0 must be at least 1"),
        ({"where": "emulated"}, "needs network.hosts"),
        ({"network": {"hosts": 2}}, "network.* has no effect with where=local"),
        ({"slurm": {"jobs_at_once": 2}}, "slurm.* has no effect with where=local"),
        ({"where": "emulated", "network": {"hosts": 0}}, "network.hosts=0 must be at least 1"),
        ({"where": "slurm", "slurm": {"poll_seconds": 0}}, "slurm.poll_seconds=0 must be above 0"),
        ({"where": "cloud"}, "where=cloud is not one of local, emulated, slurm"),
        ({"kind": "hard"}, "kind=hard is not one of strong, weak"),
        ({"mpi": "lam"}, "mpi=lam is not one of"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_mistakes_of_the_configuration_are_told(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(**changed)


def test_a_configuration_comes_back_from_its_mapping() -> None:
    config = config_of(axes={"x": {"a": ["lr=1"]}}, where="emulated", network={"hosts": 2})
    assert from_mapping(ExperimentConfig, to_mapping(config)) == config


# --- points


def test_ranks_are_given_or_follow_from_the_mesh() -> None:
    assert points.ranks_of(point_of(1, 3).config) == 3
    mesh = {"data": 2, "pipeline": 3, "operator": 1}
    assert points.ranks_of(replace(point_of(1, 6, mesh=mesh).config, ranks=None)) == 6
    with pytest.raises(ConfigError, match=r"ranks is not set, and mesh.data=null"):
        points.ranks_of(replace(point_of(1, 1).config, ranks=None))


@pytest.mark.parametrize(
    ("changed", "ranks", "words"),
    [
        ({}, 3, "3 ranks are more than the 2 that are allowed"),
        ({"mesh": {"data": None, "pipeline": 2, "operator": 1}}, 1, "does not divide the 1 ranks"),
        ({"mesh": {"data": 4, "pipeline": 1, "operator": 1}}, 2, "= 4 ranks, but 2"),
        ({"allreduce": {"name": "rign"}}, 2, "allreduce.name=rign is not one of .*mean ring"),
        ({"pipeline": {"name": "gpipe"}}, 2, "has no effect with mesh.pipeline=1"),
        ({"mesh": {"data": 1, "pipeline": 2, "operator": 1},
          "pipeline": {"name": "zb_v", "microbatches": 1}}, 2, "micro"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_points_that_could_not_run(changed: dict[str, Any], ranks: int, words: str) -> None:
    point = point_of(1, ranks, **changed)
    with pytest.raises(Exception, match=words):
        points.check_point(config_of(most_ranks=2), point.config, ranks)
    points.check_point(config_of(most_ranks=2), point_of(1, 2).config, 2)


def test_without_a_limit_ranks_are_those_that_have_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "cores", lambda: 2)
    with pytest.raises(ConfigError, match="most_ranks=3 to have ranks share cores"):
        points.check_point(config_of(), point_of(1, 3).config, 3)
    points.check_point(config_of(where="slurm"), point_of(1, 3).config, 3)


def test_the_same_point_twice_is_refused() -> None:
    twice = [point_of(1, 2, {"x": "a"}), point_of(2, 2, {"x": "b"})]
    with pytest.raises(ConfigError, match=r"points 1 \(x=a\) and 2 \(x=b\) are the same"):
        points.check_points(config_of(), twice)


@pytest.mark.parametrize(
    ("kind", "sizes", "words"),
    [
        ("strong", (64, 64), None),
        ("weak", (64, 128), None),
        ("strong", (64, 128), "kind=strong keeps the work the same"),
        ("weak", (64, 64), "set per_rank.batch_size"),
    ],
)
def test_points_of_a_curve_do_comparable_work(
    kind: str, sizes: tuple[int, int], words: str | None
) -> None:
    both = [point_of(n, n, {"ranks": str(n)}, batch_size=sizes[n - 1]) for n in (1, 2)]
    if words is None:
        points.check_points(config_of(kind=kind), both)
        return
    with pytest.raises(ConfigError, match=words):
        points.check_points(config_of(kind=kind), both)


def test_points_of_a_curve_have_one_model() -> None:
    other = {"name": "mlp", "hidden": [9], "activation": "relu", "dropout": 0.0, "loss": None}
    both = [point_of(1, 1, {"ranks": "1"}), point_of(2, 2, {"ranks": "2"}, model=other)]
    with pytest.raises(ConfigError, match=r"differ in model.hidden .*make model.hidden an axis"):
        points.check_points(config_of(), both)


def settings(*axes: str, **ranks: int) -> list[Point]:
    """Points named a1, b2, …: one letter of `axes` each, with the ranks given."""
    return [
        point_of(number, count, dict(zip(axes, name, strict=True)))
        for number, (name, count) in enumerate(ranks.items(), 1)
    ]


def test_the_axis_along_which_ranks_grow() -> None:
    assert points.scaling_axis(settings("x", "ranks", a1=1, a2=2, b1=1, b2=2)) == "ranks"
    assert points.scaling_axis(settings("x", "y", a1=1, a2=2, b1=1, b2=2)) == "y"
    assert points.scaling_axis(settings("x", "y", a1=2, a2=2, b1=2, b2=2)) is None
    assert points.scaling_axis(settings("x", a=2, b=2, c=4)) is None  # two have as many ranks
    assert points.scaling_axis([]) is None


def test_a_curve_is_what_differs_in_that_axis_alone() -> None:
    found = points.series(settings("x", "ranks", a2=2, a1=1, b1=1), "ranks")
    assert {key: [p.ranks for p in group] for key, group in found.items()} == {
        (("x", "a"),): [1, 2],
        (("x", "b"),): [1],
    }


# --- the command line


def plan(*argv: str) -> list[Point]:
    request = experiment._named(arguments.parse(argv, "dist-ml experiment", config_name=""))
    return experiment.plan(request, from_mapping(ExperimentConfig, compose.composed(request)))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_have_points(name: str) -> None:
    found = plan(name, "most_ranks=4")
    assert len(found) >= 3
    assert all(point.ranks <= 4 for point in found)
    assert len({point.name for point in found}) == len(found)


def test_a_weak_experiment_grows() -> None:
    (one, four) = plan("weak", "axes.ranks=[1,4]")
    assert (one.config.batch_size, four.config.batch_size) == (128, 512)
    assert one.config.data.num_train is not None
    assert four.config.data.num_train == 4 * one.config.data.num_train
    assert four.name == "2_ranks=4"
    assert four.config.ranks == four.ranks == 4


def test_the_file_in_the_docs_has_points(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(block)
    found = plan("--config-dir", str(tmp_path), "mine", "axes.ranks=[1,2]")
    assert [point.name for point in found] == [
        "1_ranks=1,exchange=plain", "2_ranks=1,exchange=ring_bf16",
        "3_ranks=2,exchange=plain", "4_ranks=2,exchange=ring_bf16",
    ]  # fmt: skip


OWN = """\
# @package _global_
# Of my own
name: mine
folder: out
kind: strong
base: tiny
fixed: {}
axes:
  mesh.data: [1, 2]
repetitions: 2
where: local
time_limit_seconds: 9
"""
TINY = "defaults:\n  - train\n  - _self_\nbatch_size: 32\nmesh: {pipeline: 1, operator: 1}\n"


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(OWN)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return ["--config-dir", str(tmp_path)]


def test_own_experiments_with_own_training(
    own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(*own, "mine", "most_ranks=2")
    assert [(point.ranks, point.config.batch_size) for point in found] == [(1, 32), (2, 32)]
    assert found[1].overrides == ("mesh.data=2", "ranks=2")
    assert main.main(["experiment", *own]) == 2
    assert "The first word names it: exchanges, mine, schedules" in capsys.readouterr().err
    assert main.main(["experiment", "--help", *own]) == 0
    assert "mine       Of my own" in capsys.readouterr().out


def test_a_plan_is_told_without_running(
    own: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main(["experiment", *own, "mine", "--plan", "most_ranks=2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 points of tiny, 2 runs each",
        "  1 on 1 rank: mesh.data=1 ranks=1",
        "  2 on 2 ranks: mesh.data=2 ranks=2",
    ]


def test_a_file_without_its_first_line_is_told(
    own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(own[1], "experiment", "mine.yaml")
    file.write_text(OWN.partition("\n")[2])
    assert main.main(["experiment", *own, "mine"]) == 2
    assert "begin it with: # @package _global_" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nope"], "experiment nope is not one of exchanges, schedules, strong, weak"),
        (["axes.ranks=[1]"], "which experiment?"),
        (["strong", "-m"], "--multirun has no effect"),
        (["strong", "--config-name=x"], "--config-name=x has no effect"),
        (["strong", "base=trian"], "base=trian is not one of .* (did you mean train?)"),
        (["strong", "optimizer.lr=1"], "optimizer is a key of the training configuration"),
        (["strong", "axes.ranks=[1,8]"], "point 2 (ranks=8): 8 ranks are more than the 4"),
        (["strong", "axes={ranks:[1],sede:[1]}"], "point 1 (ranks=1 sede=1): unknown key sede=1"),
        (["schedules", "axes.pipeline=[gpip]", "most_ranks=2"], "pipeline=gpip is not one of"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main(["experiment", *argv]) == 2
    told = capsys.readouterr().err
    first, _, last = words.partition(" .* ")
    assert first in told
    assert last in told
    assert "Traceback" not in told


# --- the job of a point


def test_the_command_line_of_a_run(tmp_path: Path) -> None:
    job = TrainingJob("tiny", tmp_path, ("ranks=2",), Path("a b/it's"), 2, debug=True)
    assert job.program[1:] == [
        "-m", "dist_ml", "train", "--config-name=tiny", f"--config-dir={tmp_path}", "--debug",
        "ranks=2", r"folder='a b/it\'s'",
    ]  # fmt: skip


def test_folders_have_harmless_names() -> None:
    assert folder_name(3, ["data.path=/a/b c", "x=1"]) == "3_data.path=-a-b-c,x=1"
    assert folder_name(1, []) == "1"
    assert len(folder_name(12, ["x" * 500])) == 80
