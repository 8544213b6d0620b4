"""Experiments for tests: configurations, points, and runs as training leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.config.train import TrainConfig
from dist_ml.experiment.folder import Run
from dist_ml.experiment.points import Point
from tests import configurations


def config_of(**changed: Any) -> ExperimentConfig:
    """A strong experiment over two numbers of ranks on this machine, with keys changed."""
    usual = {
        "name": "test",
        "folder": "experiments/test",
        "kind": "strong",
        "base": "train",
        "fixed": {},
        "axes": {"ranks": [1, 2]},
        "repetitions": 1,
        "where": "local",
        "time_limit_seconds": 60.0,
    }
    return from_mapping(ExperimentConfig, {**usual, **changed})


def point_of(
    number: int, ranks: int, settings: Mapping[str, str] | None = None, **changed: Any
) -> Point:
    """A point on so many ranks: the default training, with keys changed."""
    config = from_mapping(TrainConfig, {**configurations.mapping(), "ranks": ranks, **changed})
    named = {"ranks": str(ranks)} if settings is None else settings
    return Point(number, named, (f"ranks={ranks}",), config, ranks)


def finish(run: Run, **summary: Any) -> None:
    """The folder of a run that ended well, or of one that wrote what `summary` says."""
    (run.folder / "log").mkdir(parents=True)
    mapping = {**to_mapping(run.point.config), "folder": str(run.folder)}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(mapping))
    usual = {
        "status": "finished",
        "ranks": run.point.ranks,
        "seconds": 10.0 / run.point.ranks,
        "samples_per_second": 100.0 * run.point.ranks,
        "communication_share": 0.125,
        "words_sent": 1000 * (run.point.ranks - 1),
        "environment": {"processor": "a processor", "cores": 2, "commit": "abc", "torch": "2"},
    }
    (run.folder / "summary.json").write_text(json.dumps({**usual, **summary}))


def write_small(folder: Path, **changed: Any) -> None:
    """The experiment `small` in a folder for --config-dir: one run each of two numbers of ranks."""
    fixed = {"data": "synthetic", "data.num_train": 1024, "data.num_test": 64, "epochs": 1}
    usual = {
        "name": "small",
        "folder": "out",
        "kind": "strong",
        "base": "train",
        "fixed": {**fixed, "model.hidden": [16]},
        "axes": {"ranks": [1, 2]},
        "repetitions": 1,
        "where": "local",
        "time_limit_seconds": 100,
        "most_ranks": 2,
    }
    (folder / "experiment").mkdir()
    text = "# @package _global_\n" + yaml.safe_dump({**usual, **changed}, sort_keys=False)
    (folder / "experiment" / "small.yaml").write_text(text)
