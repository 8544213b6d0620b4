"""The command line without ranks: what it says, composes and refuses."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from dist_ml.cli import arguments, main, sweep_points
from dist_ml.cli.configured import field_comments
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from tests.configurations import mapping, train_config

OWN_DATA = "name: synthetic\nnum_train: 100\nnum_test: 10\nnum_features: 4\n"
OWN_DATA += "num_outputs: 3\ntask: classification\n"
OWN_DATA += "teacher_width: 4\nnoise: 0.0\nseed: 0\n"
OWN_TRAIN = "defaults:\n  - train\n  - override data: tiny\n  - _self_\nepochs: 2\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder with a group option and a whole configuration."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny.yaml").write_text(OWN_DATA)
    (tmp_path / "mine.yaml").write_text(OWN_TRAIN)
    return tmp_path


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in main.COMMANDS)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown command 'trian'; there are train, evaluate"
    )


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "--lr", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: unrecognized arguments: --lr")
    assert "Traceback" not in captured.err


def test_only_rank_0_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    assert main.main(["--help"]) == 0
    assert main.main(["trian"]) == 2
    assert capsys.readouterr() == ("", "")


def test_train_help_has_groups_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "--help", "optimizer=adamw", "optimizer.lr=0.125"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"optimizer +adamw, sgd", shown)
    assert "  optimizer.lr  " in shown
    assert "0.125" in shown
    assert "samples of one optimizer step" in shown


def test_cfg_job_is_yaml_that_composes_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main(["train", "--cfg", "job", "--resolve", "seed=7", "folder=x"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert train_config("--config-dir", str(tmp_path), "--config-name", "again") == train_config(
        "seed=7", "folder=x"
    )


def test_package_shows_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "--cfg", "job", "--package", "mesh"]) == 0
    assert capsys.readouterr().out == "data: null\npipeline: 1\noperator: 1\n"


def test_overrides_and_groups() -> None:
    config = train_config(
        "optimizer=adamw", "optimizer.lr=1e-4", "model.hidden=[8,9]", "+clip_norm=1", "name=mine"
    )
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 1e-4)
    assert config.model.hidden == (8, 9)
    assert config.clip_norm == 1.0
    assert config.folder.startswith("runs/mine/")


@pytest.mark.parametrize(
    ("config_name", "overrides", "key", "expected"),
    [
        ("train", "model=transformer", "", "adamw"),
        ("train", "model=cnn optimizer.lr=0.5", "", "adamw"),
        ("train", "optimizer=sgd model=transformer", "", "sgd"),
        ("train", "model=mlp", "", "sgd"),
        ("bench/same_numbers", "model@train.model=transformer", "train", "adamw"),
        (
            "bench/same_numbers",
            "model@train.model=cnn optimizer@train.optimizer=sgd",
            "train",
            "sgd",
        ),
        ("bench/models", "model@cnn.train.model=cnn", "cnn.train", "adamw"),
        ("bench/models", "model@cnn.train.model=cnn", "transformer.train", "sgd"),
        ("bench/sharded", "model@train.model=mlp", "train", "adamw"),
    ],
)
def test_a_model_comes_with_its_usual_optimizer(
    config_name: str, overrides: str, key: str, expected: str
) -> None:
    """Wherever the training configuration is, and unless another one is chosen."""
    found = mapping(*overrides.split(), name=config_name)
    for part in key.split(".") if key else ():
        found = found[part]
    assert found["optimizer"]["name"] == expected
    assert ("betas" in found["optimizer"]) == (expected == "adamw")


def test_a_key_that_the_yaml_leaves_out_can_be_set() -> None:
    assert train_config("optimizer=adamw", "optimizer.eps=0.5").optimizer.eps == 0.5


def test_own_config_folder(own: Path) -> None:
    assert train_config("--config-dir", str(own), "data=tiny").data.num_train == 100
    config = train_config("--config-dir", str(own), "--config-name", "mine", "data.num_test=5")
    assert (config.epochs, config.data.num_train, config.data.num_test) == (2, 100, 5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["data=dijits"],
            "data=dijits is not one of arrays, cifar, digits, mnist, own, synthetic, text "
            "(did you mean digits?)",
        ),
        (["optimizer.lrr=3"], "unknown key optimizer.lrr=3 (did you mean lr?)"),
        (["+foo=3"], "unknown key foo=3"),
        (["optimizer.lr=fast"], "optimizer.lr=fast has the wrong type: it must be a number"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["~seed"], "seed is missing"),
        (["=3"], "override '=3' names no key"),
        (["seed"], "override 'seed' can't be read"),
        (["model.hidden=[1,2"], "override 'model.hidden=[1,2' can't be read"),
        (["optimizer.lr=0.1,0.2"], "add --multirun"),
        (
            ["optimizer=[sgd]"],
            "optimizer=[sgd] must name one option of the group optimizer: adamw, sgd",
        ),
        (["name=${nope}"], "name: Interpolation key 'nope' not found"),
        (["name=???"], "name has no value; set name=<value>"),
        (["hydra.run.dir=x"], "runs are placed by folder=<path>"),
        (["--config-name", "trian"], "--config-name trian is not one of"),
        (["--config-dir", "/nope"], "--config-dir /nope is no folder"),
        (["+optimizer=adamw"], "Multiple values for optimizer"),
    ],
)
def test_mistakes_are_answered_in_words(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(*argv)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_field_is_documented() -> None:
    comments = field_comments(TrainConfig)
    assert comments["seed"].startswith("of initial weights")
    hints = typing.get_type_hints(TrainConfig)
    assert [
        name
        for name, hint in hints.items()
        if not dataclasses.is_dataclass(hint) and name not in comments
    ] == []


def points_of(*argv: str) -> list[sweep_points.Point]:
    return sweep_points.plan(arguments.parse(["--multirun", *argv], "dist-ml train", "train"))


def test_a_sweep_is_the_product_of_its_values() -> None:
    points = points_of("ranks=1,2", "optimizer.lr=choice(0.1,0.2)", "seed=range(0,2)", "epochs=3")
    assert len(points) == 8
    assert points[3].overrides == ("ranks=1", "optimizer.lr=0.2", "seed=1", "epochs=3")
    assert [point.ranks for point in points] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert points[3].folder.name == "4_ranks=1,optimizer.lr=0.2,seed=1"
    assert len({point.folder.parent for point in points}) == 1


def test_a_sweep_over_groups_and_none() -> None:
    assert [point.folder.name for point in points_of("optimizer=sgd,adamw")] == [
        "1_optimizer=sgd",
        "2_optimizer=adamw",
    ]
    assert [point.folder.name for point in points_of("seed=1")] == ["1"]


def test_folder_names_are_harmless() -> None:
    (point, _) = points_of("data=arrays", "data.path='/a/b c','/d'")
    assert point.folder.name == "1_data.path=-a-b-c"


def test_a_sweep_with_a_mistake_does_not_start() -> None:
    with pytest.raises(
        ConfigError,
        match=r"point 2 of the sweep \(optimizer.lr=-1\): optimizer.lr=-1.* must be above 0",
    ):
        points_of("optimizer.lr=1,-1")
