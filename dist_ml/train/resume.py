"""Going on with a run that another process began: from which checkpoint, and whether its settings
are still the same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dist_ml.checkpoint.reader import Checkpoint, newest
from dist_ml.comm.agreement import from_root
from dist_ml.comm.mesh import Mesh
from dist_ml.config.convert import show, to_mapping
from dist_ml.config.train import AUTO, TrainConfig
from dist_ml.errors import ConfigError, DataError
from dist_ml.train import stored_run
from dist_ml.train.checkpoints import is_imported
from dist_ml.train.metrics import flatten
from dist_ml.train.run_folder import RunFolder, load_config

# Keys that change no result beyond rounding: what is written and shown, and how the work is shared.
_SAME_RESULT = (
    "name", "folder", "ranks", "resume", "resume_force", "log_every", "evaluate_every",
    "accumulation", "kernel", "data.path", "data_parallel.name", "allreduce.name",
    "allreduce.overlap", "allreduce.bucket_bytes", "pipeline.microbatches",
)  # fmt: skip
_SAME_RESULT_GROUPS = ("checkpoint", "comm", "tracker", "mesh", "pipeline", "operator_parallel")


class Earlier(NamedTuple):
    """What is there of a run: the checkpoint to go on from, None where it is to begin again; its
    summary, where it has finished; and the settings that are others now, in words. `begun` is false
    where there are only weights that were imported, to begin with.
    """

    checkpoint: Checkpoint | None
    summary: dict[str, Any] | None = None
    differences: Sequence[str] = ()
    begun: bool = True


def find(config: TrainConfig, mesh: Mesh) -> Earlier | None:
    """The run to go on with; None where `resume=auto` finds none, which begins one. Collective.

    Raised by all ranks: `DataError` where there is no run, or none that can be read; `ConfigError`
    for settings that change its results, unless `resume_force`.
    """
    folder = RunFolder(Path(config.place).absolute())
    summary = from_root(mesh.world, lambda: _summary(folder, config.resume == AUTO))
    checkpoint = newest(folder.checkpoints, mesh.world)
    if summary is None:
        return None if checkpoint is None else Earlier(checkpoint, begun=False)
    finished = summary.get("status") == "finished"
    if not finished and (checkpoint is None or is_imported(checkpoint)):
        return Earlier(checkpoint)
    if finished or checkpoint is None:
        before = from_root(mesh.world, lambda: load_config(folder.path))
    else:
        before = checkpoint.header["config"]
    different = differences(before, json.loads(json.dumps(to_mapping(config))))
    changing = [words for key, words in different.items() if not keeps_result(key)]
    if finished and not changing:
        return Earlier(checkpoint, summary)
    _require_going_on(config, folder, checkpoint, changing)
    assert checkpoint is not None
    words = list(different.values())
    if (sizes := checkpoint.header["mesh"]) != mesh.sizes:
        words.append(f"mesh: {_product(sizes)} -> {_product(mesh.sizes)}")
    return Earlier(checkpoint, None, words)


def _require_going_on(
    config: TrainConfig, folder: RunFolder, checkpoint: Checkpoint | None, changing: Sequence[str]
) -> None:
    """`ConfigError` where other settings change the results and nobody wants that, or the run has
    left nothing to go on from.
    """
    if changing and not config.resume_force:
        problem = (
            f"was trained with other settings, which change its results: {'; '.join(changing)} "
            "(before -> now); use the former, or resume_force=true"
        )
    elif checkpoint is None or is_imported(checkpoint):
        problem = "has finished, and saved nothing to go on from; choose another folder"
    else:
        return
    error = ConfigError(f"{folder.path} {problem}")
    error.agreed = True
    raise error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The keys of two configurations whose values differ, each in words."""
    old, new = flatten(before), flatten(now)
    return {
        key: f"{key}: {show(old.get(key))} -> {show(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def keeps_result(key: str) -> bool:
    """Does a run come to the same, but for rounding, whatever the value of this key?"""
    return key in _SAME_RESULT or key.split(".")[0] in _SAME_RESULT_GROUPS


def _summary(folder: RunFolder, may_be_none: bool) -> dict[str, Any] | None:
    """What the run's summary.json holds, {} without one; None where there is no run."""
    if may_be_none and not folder.log.is_dir():
        return None
    if not may_be_none and not folder.config.exists():
        raise DataError(
            f"resume={folder.path} is no run to go on with (no config.yaml there); give the folder "
            "of a run, or resume=auto, which begins one where there is none"
        )
    return stored_run.read_summary(folder.summary)


def _product(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())
