"""Malformed command lines, from a seed: each is refused in words or is a run that can be built."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dist_ml.cli import arguments, main, sweep_points
from dist_ml.comm import mpi
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.metrics import flatten
from tests import malformed
from tests.configurations import mapping, train_config

NUM_OVERRIDES = 24  # through Hydra, which takes a quarter of a second each
VALUES = [
    "", "null", "~", "true", "-1", "0", "1", "2.5", "1e400", "-1e-400", ".nan", "nan", "inf",
    "-.inf", "1_000", "0x10", "1e3", "9" * 40, "'1'", "text", "'quoted text'", "[]", "[1]",
    "[null]", "[-1,0]", "{}", "{a:1}", "[[1]]", "1,2", "range(0,0)", "choice()", "${seed}",
    "${nowhere}", "???", "../..", "/dev/null", "name with blanks", "ä", "\U0001f600", "a" * 5000,
    "[" * 200, "=", "==", "$(id)", "%s", "\\", "'", "\t",
]  # fmt: skip
SHAPES = [
    "{key}={value}",
    "+{key}={value}",
    "++{key}={value}",
    "~{key}",
    "{key}",
    "{key}.x={value}",
]
FLAGS = ["--lr", "-x", "--cfg", "--cfg=all", "--config-name=nowhere", "--resolve=1", "--", "-"]


def build(argv: list[str]) -> None:
    config = train_config(*argv)
    build_trainer(config, build_mesh(config, mpi.world()))


def overrides() -> Iterator[list[str]]:
    """Keys of the configuration, and some that don't exist, with values that mostly don't fit."""
    chance = random.Random(malformed.SEED)
    keys = [
        *flatten(mapping()),
        "data",
        "optimizer",
        "nowhere",
        "optimizer.nowhere",
        "hydra.x",
        "",
    ]
    for _ in range(NUM_OVERRIDES):
        shape, key, value = chance.choice(SHAPES), chance.choice(keys), chance.choice(VALUES)
        case = [shape.format(key=key, value=value)]
        if chance.random() < 0.1:
            case.append(chance.choice(FLAGS))
        yield case


def outcome(case: Any, config: Callable[[], TrainConfig]) -> str:
    """What comes of it; nothing but a `DistMLError` with words may be raised."""
    try:
        built = config()
        build_trainer(built, build_mesh(built, mpi.world()))
    except DistMLError as error:
        return str(error) and "refused"
    except Exception as error:
        pytest.fail(f"{case} raised {type(error).__name__}: {error}")
    return "built"


def test_malformed_command_lines_are_refused_in_words_or_make_a_trainer() -> None:
    outcomes = [outcome(case, lambda case=case: train_config(*case)) for case in overrides()]  # type: ignore[misc]
    assert set(outcomes) == {"refused", "built"}
    assert outcomes.count("refused") > NUM_OVERRIDES // 2


def test_malformed_values_are_refused_in_words_or_make_a_trainer() -> None:
    outcomes = []
    for case, wanted in malformed.mappings():
        config = lambda wanted=wanted: from_mapping(TrainConfig, wanted)  # noqa: E731
        outcomes.append(outcome(case, config))
    assert set(outcomes) == {"refused", "built"}
    assert outcomes.count("refused") > malformed.NUM_MAPPINGS // 2


@pytest.mark.parametrize(
    "argv",
    [
        ["name=" + "x" * 5000],
        ["name=.."],
        ["name=a/../../b"],
        ["name="],
        ["folder="],
        ["optimizer=adamw", "optimizer.eps=-1"],
        ["optimizer=adamw", "optimizer.eps=.inf"],
        ["optimizer.weight_decay=.inf"],
        ["optimizer.lr=.inf"],
        ["model.hidden=[1000000000000]"],
        ["accumulation=1000000000"],
        ["data=synthetic", "data.num_outputs=1000000000000"],
        ["data=synthetic", "data.num_train=1000000000000000"],
        ["data_parallel=zero1", "allreduce.wire=bf16"],
        ["mesh.data=3"],
        ["seed=-1"],
        ["epochs=1000000000000000"],
        ["clip_norm=0"],
    ],
    ids=lambda argv: " ".join(argv)[:50],
)
def test_nothing_is_accepted_silently(argv: list[str]) -> None:
    with pytest.raises(DistMLError) as caught:
        build(argv)
    named = argv[-1].partition("=")[0]
    assert any(part in str(caught.value) for part in (named, named.rpartition(".")[2]))


def test_a_run_without_end_is_told_what_it_would_cost() -> None:
    """digits are 1,440 samples, 23 batches of 64."""
    words = "23,000,000,000,000,000 steps, 266,203,703 days at a thousand a second"
    with pytest.raises(ConfigError, match=words):
        build(["epochs=1000000000000000"])


@pytest.mark.parametrize(
    "value",
    ["range(0,0)", "range(0,1000000000)", "choice()", "glob(nothing*)"],
)
def test_sweeps_without_values_or_with_too_many(value: str) -> None:
    with pytest.raises(ConfigError):
        sweep_points.plan(
            arguments.parse(["-m", f"optimizer.lr={value}"], "dist-ml train", "train")
        )


def test_a_sweep_of_too_many_points() -> None:
    argv = ["-m", *(f"{key}=range(1,200)" for key in ("seed", "epochs", "batch_size"))]
    with pytest.raises(ConfigError, match="at most 10,000 points"):
        sweep_points.plan(arguments.parse(argv, "dist-ml train", "train"))


@pytest.mark.parametrize("command", sorted(main.COMMANDS))
@pytest.mark.parametrize("flag", ["--nowhere", "--time-limit=nan", "-Z"])
def test_flags_that_do_not_exist(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([command, flag, *(["step"] if command == "bench" else [])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
