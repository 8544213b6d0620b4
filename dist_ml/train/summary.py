"""What a run comes to, in figures: its summary.json."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dist_ml.comm.agreement import from_root
from dist_ml.config.train import TrainConfig
from dist_ml.measure.environment import environment
from dist_ml.train.axis_words import planned_words
from dist_ml.train.evaluator import Evaluation
from dist_ml.train.progress import Progress
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.trainer import Trainer

# What a finished run's summary is to hold of predictions: made of the configuration, the trainer,
# the summary, and the ranks of a node, on rank 0 alone; it never raises.
Predict = Callable[[TrainConfig, Trainer, Mapping[str, Any], int], dict[str, Any]]


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """The figures that there are, by name."""
    values = {
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy,
        "test_bits_per_byte": evaluation.bits_per_byte,
    }
    return {name: value for name, value in values.items() if value is not None}


def figures(
    config: TrainConfig,
    trainer: Trainer,
    folder: RunFolder,
    progress: Progress,
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """The totals of all processes that the run has had, and where the last of them ran."""
    world = trainer.mesh.world
    seconds = max(progress.train_seconds, 1e-9)
    total = progress.all_traffic(world.traffic.total())
    steps = max(1, trainer.num_steps)
    saved = {"num_saved": progress.num_saved, "save_seconds": progress.save_seconds}
    return {
        "name": config.name,
        "folder": str(folder.path),
        "ranks": world.size,
        "threads": torch.get_num_threads(),  # of a rank; products' last bits depend on it
        "num_parameters": trainer.model.num_parameters,
        "num_steps": trainer.num_steps,
        "num_skipped": progress.num_skipped,
        "train_loss": progress.last_loss,
        **evaluation,
        "seconds": progress.train_seconds,
        **(saved if progress.num_saved else {}),
        **({"recoveries": progress.recoveries} if progress.recoveries else {}),
        "samples_per_second": progress.num_samples / seconds,
        "communication_share": progress.phase_seconds.get("exchange", 0.0) / seconds,
        "seconds_by_phase": progress.phase_seconds,
        "words_sent": total["words_sent"],
        "words_by_axis": {axis: words / steps for axis, words in progress.words.items()},
        "planned_words_by_axis": planned_words(config, trainer),
        "messages": total["messages"],
        "bytes_sent": total["bytes_sent"],
        "environment": environment(),
    }


def predicted(
    predict: Predict | None, config: TrainConfig, trainer: Trainer, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What `predict` makes of a finished run, on all ranks. Collective; nothing without one."""
    if predict is None:
        return {}
    world = trainer.mesh.world
    node = world.split_by_node()
    ranks_per_node = node.size
    node.free()
    return from_root(world, lambda: predict(config, trainer, summary, ranks_per_node))
