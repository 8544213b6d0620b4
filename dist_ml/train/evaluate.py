"""Evaluate what a run has saved, on any number of ranks."""

from pathlib import Path
from typing import Any

from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.train import run_folder
from dist_ml.train.assemble import build_evaluator
from dist_ml.train.build import build_mesh, build_task
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.summary import evaluation_values
from dist_ml.train.weights import load_weights


def evaluate_run(path: str | Path, world: Communicator) -> dict[str, Any]:
    """Mean loss and accuracy of a run's saved weights over its test samples. Collective."""
    mapping = from_root(world, lambda: run_folder.load_config(path))
    # However many ranks trained, those of today evaluate, all as replicas.
    mesh_sizes = {"data": None, "pipeline": 1, "operator": 1}
    config = from_mapping(TrainConfig, {**mapping, "ranks": None, "mesh": mesh_sizes})
    mesh = build_mesh(config, world)
    task = build_task(config, mesh)
    with raise_on_all_ranks(world):
        load_weights(task.model, RunFolder(Path(path)).model)
    return evaluation_values(build_evaluator(config, mesh, task).evaluate(task.dataset.test))
